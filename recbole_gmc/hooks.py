"""What RecBole asks the plugin in the course of a run: settings, classes, data sets, checkpoints.

Each wrapper acts on registered models, or on files that only the plugin writes; all else goes to RecBole unchanged.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from recbole.utils.enum_type import FeatureType

from recbole_gmc import compat, keys, lookup, places, registry, sections
from recbole_gmc.errors import SettingError
from recbole_gmc.files import safe_name
from recbole_gmc.values import read_yaml


def load_internal_config_dict(inner: Callable, config: Any, model: str, model_class: type, dataset: str) -> None:
    """Lays the model's property file over RecBole's, then the data set's; what the user gave comes on top of both."""
    entry = registry.entry(model)
    if entry is None:
        _refuse_domains(config, model, dataset)
        return inner(config, model, model_class, dataset)
    safe_name(dataset, "dataset")
    _drop_foreign(config)
    config.file_config_dict = sections.for_model(config.file_config_dict, model)
    config._merge_external_config_dict()
    given = config.external_config_dict
    keys.refuse_unknown(given)
    inner(config, model, model_class, dataset)
    if entry.properties is not None:
        config.internal_config_dict.update(read_yaml(entry.properties))
    known = {**config.internal_config_dict, **given}
    settings = sections.for_model(lookup.dataset_settings(dataset, known), model)
    keys.refuse_unknown(settings)
    config.internal_config_dict.update(settings)
    if settings.get("embedded_data"):  # where that lies is not the user's choice
        given["data_path"] = settings["data_path"]
    return None


def _drop_foreign(config: Any) -> None:
    """Forgets flags in ``sys.argv`` that are not for us: the program around us may have its own."""
    foreign = [key for key in config.cmd_config_dict if key not in keys.known_keys()]
    for key in foreign:
        del config.cmd_config_dict[key]
    if foreign:
        config._merge_external_config_dict()
        getLogger().warning("command line args [%s] are no settings and are not used", " ".join(foreign))


def _refuse_domains(config: Any, model: str, dataset: str) -> None:
    given = config.external_config_dict
    domains = given.get("domains")
    if not domains:
        try:
            file = lookup.dataset_yaml(dataset, given.get("data_path") or "dataset/")
        except SettingError:
            file = None
        domains = file is not None and {"domains", "embedded_data"} & set(read_yaml(file))
    if domains:
        raise _takes_one_domain(model, dataset)


def _takes_one_domain(model: str, dataset: str) -> SettingError:
    return SettingError(
        f"{model} takes one domain at a time",
        where="domains",
        mend=f"`python run_recbole_gmc.py --model={model} --dataset={dataset} ...` runs it once a domain",
    )


def get_final_config_dict(inner: Callable, config: Any) -> dict[str, Any]:
    """Checks the settings of a registered model before RecBole looks at them."""
    final = inner(config)
    entry = registry.entry(config.model)
    if entry is None:
        return final
    own = getattr(config.model_class, "own_settings", ())
    final = keys.check(final, config.dataset, own, config.internal_config_dict)
    if not entry.union and len(final.get("domains") or ()) > 1:
        raise _takes_one_domain(config.model, config.dataset)
    return final


def set_default_parameters(inner: Callable, config: Any) -> None:
    """Names the run's folder; and a label called ``ml-100k`` does not move the domains to RecBole's own folder."""
    final = config.final_config_dict
    data_path = final.get("data_path")
    inner(config)
    if registry.entry(config.model) is None:
        return
    if final.get("domains"):
        final["data_path"] = str(Path(data_path) / config.dataset)
    folder = places.run_dir(config)
    if not final.get("checkpoint_dir"):
        final["checkpoint_dir"] = str(folder)


def get_model(inner: Callable, name: str) -> type:
    """Says which names there are; RecBole ends with `No module named 'lightgbm'` (RecBole issue #489)."""
    try:
        with compat.anomaly_detection_as_it_is():
            found = inner(name)
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        refuse_unknown_model(name, error)
        raise
    if found.__module__ in compat.PRETRAINED_READERS:
        compat.let_module_read_checkpoints(sys.modules[found.__module__])
    return found


def refuse_unknown_model(name: Any, cause: Exception | None = None) -> None:
    """Raises ``SettingError`` with all names, unless ``name`` is one of them."""
    ours, theirs = tuple(registry.entries()), registry.recbole_names()
    if name not in ours + theirs:
        raise SettingError(
            f"{name!r} is no model{keys.nearest(str(name), ours + theirs)}",
            where="model",
            mend=f"Of recbole_gmc: {', '.join(ours)}. Of RecBole: {', '.join(theirs)}",
        ) from cause


def create_dataset(inner: Callable, config: Any) -> Any:
    """Builds a registered model's data set from its files; RecBole would unpickle one in ``checkpoint_dir``."""
    entry = registry.entry(config["model"])
    usual = config.internal_config_dict  # a checkpoint gives all settings, most of them RecBole's own
    given = [name for name, value in config.external_config_dict.items() if value != usual.get(name)]
    if entry and (unread := keys.unread(entry.name, given)):
        getLogger().warning("%s does not read %s", entry.name, ", ".join(unread))
    return registry.load(entry.dataset)(config) if entry and entry.dataset else inner(config)


def load_split_dataloaders(inner: Callable, config: Any) -> Any:
    """The same for data loaders."""
    return None if registry.entry(config["model"]) else inner(config)


def load_data_and_model(inner: Callable, model_file: Any) -> Any:
    """Takes a folder of ours as well as RecBole's ``.pth``."""
    if not Path(model_file).is_dir():
        return inner(model_file)
    from recbole_gmc import loading

    return loading.load_data_and_model(Path(model_file))


def load_feat(inner: Callable, dataset: Any, *args: Any) -> Any:
    """Entries of a list keep no blanks around them where another character separates them (``Tools, Screws``)."""
    table = inner(dataset, *args)
    if table is not None and _ours(dataset.config) and (dataset.config["seq_separator"] or " ").strip():
        for field in table.columns:
            if dataset.field2type[field] == FeatureType.TOKEN_SEQ:
                table[field] = [_stripped(entries) for entries in table[field]]
    return table


def _stripped(entries: np.ndarray) -> np.ndarray:
    return np.array([entry for entry in map(str.strip, entries) if entry])


def data_filtering(inner: Callable, dataset: Any) -> None:
    """Items of ``.item`` without an interaction are no candidates, as for every model that loads none."""
    inner(dataset)
    if dataset.item_feat is not None and _ours(dataset.config):
        known = dataset.item_feat[dataset.iid_field].isin(dataset.inter_feat[dataset.iid_field])
        dataset.item_feat = dataset.item_feat[known].reset_index(drop=True)


def _ours(config: Any) -> bool:
    """Whether our command line started this run of one of RecBole's own models."""
    return registry.entry(config["model"]) is None and bool(config["run_dir"])


def _around(inner: Callable, wrapper: Callable) -> Callable:
    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapper(inner, *args, **kwargs)

    return call


_installed: list[bool] = []


def install() -> None:
    """Puts the wrappers in place, once."""
    if _installed:
        return
    _installed.append(True)
    from recbole.config.configurator import Config
    from recbole.data.dataset import Dataset

    from recbole_gmc import launch, logs

    for name, wrapper in (
        ("_load_internal_config_dict", load_internal_config_dict),
        ("_get_final_config_dict", get_final_config_dict),
        ("_set_default_parameters", set_default_parameters),
    ):
        setattr(Config, name, _around(getattr(Config, name), wrapper))
    for name, wrapper in (("_load_feat", load_feat), ("_data_filtering", data_filtering)):
        setattr(Dataset, name, _around(getattr(Dataset, name), wrapper))
    wrappers = (get_model, create_dataset, load_split_dataloaders, load_data_and_model)
    for wrapper in (*wrappers, logs.init_logger, logs.get_tensorboard):
        inner = compat.found_in_recbole(wrapper.__name__)
        compat.replace_everywhere(wrapper.__name__, _around(inner, wrapper))
    # The children that RecBole's own `run` spawns look this function up by its module, and so import the plugin.
    compat.replace_everywhere("run_recboles", launch.run_recboles)
