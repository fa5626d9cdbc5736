"""Which models the plugin adds, and how RecBole finds their classes by name.

RecBole looks a model up as ``recbole.model.<kind>.<name in lower case>``, its trainer as
``recbole.trainer.<Name>Trainer`` and its data set as ``recbole.data.dataset.<Name>Dataset``.
``install`` answers those three look-ups for registered names, and imports a class only when it is asked for. Classes
keep their real module path, so whatever names them in a spawned process imports, and so registers, the plugin first.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from recbole_gmc.errors import SettingError
from recbole_gmc.lookup import packaged

ALIAS = "recbole.model.sequential_recommender."


@dataclass(frozen=True)
class Entry:
    """One registered model; classes are written ``package.module:Class`` and imported on first use.

    ``union`` tells that one run takes several domains at once.
    """

    name: str
    model: str
    trainer: str | None
    dataset: str | None
    properties: Path | None
    union: bool


_entries: dict[str, Entry] = {}


def register(
    name: str,
    model: str,
    *,
    trainer: str | None = None,
    dataset: str | None = None,
    properties: str | Path | None = None,
    union: bool = True,
) -> Entry:
    """Makes ``run_recbole(model=name)`` work; a name registered before is replaced.

    Args:
        name: the model's name, which is also the name of its class.
        model: ``package.module:Class``.
        trainer: the same for its trainer; ``None`` leaves the choice to RecBole.
        dataset: the same for its data set; ``None`` leaves the choice to RecBole.
        properties: its property file; by default the packaged ``properties/model/<name>.yaml``.
        union: whether one run takes several domains.

    Raises:
        SettingError: the name belongs to RecBole, or the class is not named like the model.
    """
    if name in recbole_names():
        raise SettingError(f"{name!r} is a model of RecBole", where="register", mend="Choose another name")
    if model.rpartition(":")[2] != name:
        raise SettingError(f"{model!r} does not end in :{name}", where="register", mend="Name the class like the model")
    file = Path(properties) if properties is not None else packaged(f"properties/model/{name}.yaml")
    _entries[name] = Entry(name, model, trainer, dataset, file, union)
    _names.pop(ALIAS + name.lower(), None)
    _names[ALIAS + name.lower()] = name
    sys.modules.pop(ALIAS + name.lower(), None)
    return _entries[name]


def unregister(name: str) -> None:
    """Forgets a model; unknown names are ignored."""
    if _entries.pop(name, None):
        _names.pop(ALIAS + name.lower(), None)
        sys.modules.pop(ALIAS + name.lower(), None)


def entries() -> dict[str, Entry]:
    """The registered models by name."""
    return dict(_entries)


def entry(name: Any) -> Entry | None:
    """The registered model of that name, or ``None`` for RecBole's own."""
    return _entries.get(name) if isinstance(name, str) else None


def recbole_names() -> tuple[str, ...]:
    """The names of RecBole's own models, from its property files."""
    import recbole

    return tuple(sorted(file.stem for file in (Path(recbole.__file__).parent / "properties/model").glob("*.yaml")))


def all_names() -> set[str]:
    """The names of all models, ours and RecBole's."""
    return {*entries(), *recbole_names()}


def load(path: str) -> type:
    """The class written as ``package.module:Class``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class _AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets the module of a registered model be imported under the name that RecBole's ``get_model`` builds."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in _names else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(_entries[_names[spec.name]].model.partition(":")[0])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module is complete already; importing it under a second name must not change what it is called.
        module.__spec__ = module.__spec__.loader_state  # type: ignore[union-attr]


_names: dict[str, str] = {}
_finder = _AliasFinder()


def _answer(module: ModuleType, suffix: str, kind: str) -> None:
    """Makes ``module.<Name><suffix>`` the class that the registry holds for ``<Name>``."""

    def __getattr__(name: str) -> Any:
        found = _entries.get(name[: -len(suffix)]) if name.endswith(suffix) else None
        if found is None or getattr(found, kind) is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return load(getattr(found, kind))

    module.__getattr__ = __getattr__  # type: ignore[method-assign]


def install() -> None:
    """Hooks the registry into RecBole's three look-ups; once is enough, twice does no harm."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _answer(importlib.import_module("recbole.trainer"), "Trainer", "trainer")
    _answer(importlib.import_module("recbole.data.dataset"), "Dataset", "dataset")
