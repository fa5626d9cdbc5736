"""What RecBole 1.2.1 needs on today's stack: one function a patch, each with its reason and the RecBole issue.

``apply`` runs on ``import recbole_gmc``, once. A patch reaches RecBole's own modules only: other code in the process
loads checkpoints, reads CSV files and parses YAML as it always did.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from recbole_gmc import lookup, values
from recbole_gmc.errors import DependencyError

# The modules of RecBole that read a checkpoint with ``torch.load``; those of models are imported on demand.
CHECKPOINT_READERS = ("trainer.trainer",)
PRETRAINED_READERS = tuple(
    f"recbole.model.{name}"
    for name in (
        "general_recommender.convncf",
        "general_recommender.nais",
        "general_recommender.neumf",
        "general_recommender.ract",
        "context_aware_recommender.kd_dagfm",
        "sequential_recommender.s3rec",
    )
)


class Seen(ModuleType):
    """A module as some of RecBole's files see it: a few names replaced, all others those of the real module."""

    def __init__(self, real: ModuleType, **replaced: Any) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__.update(replaced, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


def _recbole(name: str) -> ModuleType:
    return importlib.import_module(f"recbole.{name}")


def restore_numpy_names() -> None:
    """Names that NumPy 1.24 and 2 removed and RecBole uses (RecBole issue #2215).

    RecBole sets some of them whenever a Config is made, out of others that NumPy 2 lacks; a Config that comes out of a
    checkpoint in a fresh process sets none. ``hasattr`` would warn or raise, so the module's dictionary is asked.
    """
    wanted = {
        "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_,
        "str": np.str_, "long": np.int_, "unicode": np.str_,
        "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "bool8": np.bool_,
    }  # fmt: skip
    for name, kind in wanted.items():
        if name not in np.__dict__:
            setattr(np, name, kind)


class RayTune(ModuleType):
    """``ray.tune`` that is imported when it is first used."""

    def report(self, *args: Any, **kwargs: Any) -> Any:
        """RecBole reports after every trial, also of hyperopt; only a worker of Ray, which imported it, listens."""
        return self.__getattr__("report")(*args, **kwargs) if "ray" in sys.modules else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            tune = importlib.import_module("ray.tune")
        except Exception as error:  # a ray that does not fit its neighbours fails in many ways
            raise DependencyError(
                f"ray.tune cannot be imported ({type(error).__name__}: {error})",
                where="tuning with Ray",
                mend="Install ray[tune] for this Python, or tune with hyperopt: pip install 'recbole_gmc[tune]'",
            ) from error
        return getattr(tune, name)


def import_quick_start_without_ray() -> None:
    """RecBole imports ray for every run, though only tuning with it uses it (RecBole issues #1518, #1820).

    Its pinned ray 2.6.3 needs pkg_resources, which setuptools 81 dropped, breaks on NumPy 2 and has no wheel for
    Python 3.12. A stand-in is seen while ``recbole.quick_start`` is imported; ``import ray`` elsewhere is untouched.
    """
    if "recbole.quick_start.quick_start" in sys.modules:
        return
    known = {name: sys.modules[name] for name in ("ray", "ray.tune") if name in sys.modules}
    stand_in = ModuleType("ray")
    stand_in.tune = RayTune("ray.tune")  # type: ignore[attr-defined]
    sys.modules["ray"] = stand_in
    try:
        importlib.import_module("recbole.quick_start.quick_start")
    finally:
        del sys.modules["ray"]
        sys.modules.update(known)


def _load(*args: Any, **kwargs: Any) -> Any:
    import torch

    kwargs.setdefault("weights_only", False)
    return torch.load(*args, **kwargs)


def let_recbole_read_its_checkpoints() -> None:
    """torch 2.6 reads weights only by default, RecBole's ``.pth`` files hold a Config (RecBole issues #2215, #2212).

    Allow-listing classes cannot help (the files are written with pickle protocol 4), so RecBole's trainer sees a
    ``torch`` whose ``load`` reads whole pickles. Such a file runs code when it is read: read only your own.
    """
    for name in CHECKPOINT_READERS:
        let_module_read_checkpoints(_recbole(name))
    replace_everywhere("load_data_and_model", load_data_and_model)


def let_module_read_checkpoints(module: ModuleType) -> None:
    """The same for one module that says ``torch.load``."""
    import torch

    if module.__dict__.get("torch") is torch:
        module.torch = Seen(torch, load=_load)  # type: ignore[attr-defined]


def load_data_and_model(model_file: Any) -> Any:
    """RecBole's ``load_data_and_model``, which imports torch inside the function and so cannot see another one."""
    quick = _recbole("quick_start.quick_start")
    checkpoint = _load(model_file)
    config = checkpoint["config"]
    quick.init_seed(config["seed"], config["reproducibility"])
    quick.init_logger(config)
    quick.getLogger().info(config)
    dataset = quick.create_dataset(config)
    quick.getLogger().info(dataset)
    loaders = quick.data_preparation(config, dataset)
    quick.init_seed(config["seed"], config["reproducibility"])
    model = quick.get_model(config["model"])(config, loaders[0]._dataset).to(config["device"])
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint.get("other_parameter"))
    return config, model, dataset, *loaders


def _modules_with(name: str) -> list[ModuleType]:
    loaded = [module for path, module in list(sys.modules.items()) if path.split(".")[0] == "recbole"]
    return [module for module in loaded if name in getattr(module, "__dict__", {})]


def found_in_recbole(name: str) -> Callable:
    """The function of that name which RecBole's modules share."""
    return _modules_with(name)[0].__dict__[name]


def replace_everywhere(name: str, new: Callable) -> None:
    """Replaces a function of RecBole in every module that has imported it by name."""
    old = found_in_recbole(name)
    for module in _modules_with(name):
        if module.__dict__[name] is old:
            setattr(module, name, new)


def keep_tokens_as_written() -> None:
    """Tokens such as ``NA`` and ``null`` and titles with quotes stay what they are; RecBole reads them as pandas does.

    pandas turns ``NA`` in a token column into a missing value, whose row RecBole then drops, and lets a lone quote
    swallow the following lines. Empty cells are missing as before; number columns keep pandas' words for missing. A
    byte order mark is skipped.
    """
    import pandas

    default = sorted(pandas._libs.parsers.STR_NA_VALUES)

    def read_csv(path: Any, *, dtype: dict, encoding: str | None = None, **kwargs: Any) -> Any:
        missing = {column: [""] if kind is str else default for column, kind in dtype.items()}
        kwargs.update(quoting=csv.QUOTE_NONE, keep_default_na=False, na_values=missing)
        return pandas.read_csv(path, dtype=dtype, encoding=_skip_mark(encoding), **kwargs)

    def open_text(path: Any, mode: str = "r", *args: Any, encoding: str | None = None, **kwargs: Any) -> Any:
        return open(path, mode, *args, encoding=encoding if "b" in mode else _skip_mark(encoding), **kwargs)

    module = _recbole("data.dataset.dataset")
    module.pd = Seen(pandas, read_csv=read_csv)  # type: ignore[attr-defined]
    module.open = open_text  # type: ignore[attr-defined]


def _skip_mark(encoding: str | None) -> str:
    return "utf-8-sig" if encoding is None or encoding.lower() in ("utf-8", "utf8") else encoding


@contextmanager
def anomaly_detection_as_it_is() -> Iterator[None]:
    """RecBole's module of SINE switches autograd's anomaly detection on for the whole process when it is imported.

    Every look-up of a model imports it; from then on each operation of a training step keeps a formatted stack trace.
    """
    import torch

    before = torch.is_anomaly_enabled()
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(before)


def restore_dok_update() -> None:
    """``dok_matrix._update``, which LightGCN and six others use and SciPy 1.13 removed (RecBole issue #2215)."""
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)


def _quietly(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
            return method(*args, **kwargs)

    return call


def silence_what_only_recbole_can_mend() -> None:
    """pandas warns of ``fillna(inplace=True)`` and ``agg(len)`` at every column, torch of ``torch.cuda.amp``.

    RecBole's own lines are meant, which a user cannot change. The filter names RecBole's modules and holds while a
    data set is made; RecBole's trainer sees today's names of the two classes of torch instead.
    """
    import torch

    dataset = _recbole("data.dataset.dataset").Dataset
    dataset.__init__ = _quietly(dataset.__init__)
    trainer = _recbole("trainer.trainer")
    today = {name: functools.partial(getattr(torch.amp, name), "cuda") for name in ("GradScaler", "autocast")}
    trainer.amp = Seen(trainer.amp, **today)  # type: ignore[attr-defined]


def read_settings_without_eval() -> None:
    """Command-line and ``config_dict`` strings never reach ``eval``, YAML files build plain values only.

    RecBole evaluates every string (so ``--x=open("f","w")`` writes a file) and reads YAML with a loader that it changes
    for the whole process.
    """
    module = _recbole("config.configurator")
    config = module.Config
    yaml = module.yaml
    # The loader is also an attribute of the pickled Config: PyYAML's own keeps checkpoints readable without the plugin.
    config._build_yaml_loader = lambda self: yaml.SafeLoader
    config._convert_config_dict = lambda self, settings: values.parse_all(settings)
    config._load_cmd_line = lambda self: values.parse_all(values.flags_of_program(sys.argv))
    config._load_config_files = lambda self, files: lookup.read_files(files)
    module.yaml = Seen(yaml, load=lambda text, Loader=None: values.load_yaml(text))


_PATCHES: tuple[Callable[[], None], ...] = (
    restore_numpy_names,
    import_quick_start_without_ray,
    let_recbole_read_its_checkpoints,
    keep_tokens_as_written,
    restore_dok_update,
    silence_what_only_recbole_can_mend,
    read_settings_without_eval,
)
_applied: set[str] = set()


def apply() -> None:
    """Applies every patch once."""
    for patch in _PATCHES:
        if patch.__name__ not in _applied:
            patch()
            _applied.add(patch.__name__)
