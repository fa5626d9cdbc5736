"""Where YAML files and data sets are looked for: a path, then the packaged ``properties/...``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_gmc.errors import DataError, SettingError
from recbole_gmc.files import safe_name
from recbole_gmc.values import at_home, read_yaml

CACHE = "~/.cache/recbole_gmc"


def properties_folder() -> Path:
    """The folder of the packaged property files."""
    return Path(next(iter(importlib.import_module("recbole_gmc.properties").__path__)))


def packaged(name: str) -> Path | None:
    """The packaged file ``properties/...``, or ``None``."""
    parts = Path(name).parts
    if len(parts) < 2 or parts[0] != "properties" or ".." in parts:
        return None
    file = properties_folder().joinpath(*parts[1:])
    return file if file.is_file() else None


def find_yaml(argument: str | Path) -> Path:
    """The YAML file that an argument means: a path first, then a packaged ``properties/...``.

    Raises:
        SettingError: neither is a file.
    """
    path = Path(at_home(argument))
    if path.is_file():
        return path
    if (file := packaged(str(argument))) is not None:
        return file
    raise SettingError(
        f"no file {str(argument)!r}, neither as a path ({path.absolute()}) nor as a packaged property file",
        where="config_files",
        mend=f"Packaged files lie in {properties_folder()} and are named like properties/quick_start.yaml",
    )


def dataset_yaml(name: str, data_path: str | Path) -> Path | None:
    """The property file of a data set: ``<data_path>/<name>.yaml``, then the packaged one, or ``None``."""
    name = safe_name(name, "dataset")
    own = Path(data_path) / f"{name}.yaml"
    return own if own.is_file() else packaged(f"properties/dataset/{name}.yaml")


def read_files(files: str | Path | Iterable[str | Path] | None) -> dict[str, Any]:
    """The settings of several YAML files, later ones winning; each is a path or a packaged ``properties/...``."""
    settings: dict[str, Any] = {}
    for file in [files] if isinstance(files, (str, Path)) else files or ():
        settings.update(read_yaml(find_yaml(file)))
    return settings


def place(settings: Mapping[str, Any], name: str) -> Path | None:
    """The path that a setting names, or ``None`` where it names none.

    Raises:
        SettingError: the value is no path.
    """
    value = settings.get(name)
    if value is None:
        return None
    if value == "" or not isinstance(value, (str, os.PathLike)):
        mend = "Write it as text, in quotes if need be, or leave the key out"
        raise SettingError(f"{value!r} is not a path", where=name, mend=mend)
    return Path(value)


def dataset_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a data set's name stands for, to be laid below those that the user gave.

    ``domains`` among the given settings makes the name a mere label. Otherwise it is the property file of that name, or
    else a folder with one domain. Data that the plugin carries (``embedded_data``) is laid out as ordinary folders,
    and ``data_path`` then names their place; this holds also where only some of its domains are asked for.

    Raises:
        DataError: no such property file and no such folder.
    """
    safe_name(name, "dataset")
    data_path = place(given, "data_path") or Path("dataset")
    file = dataset_yaml(name, data_path)
    settings = read_yaml(file) if file is not None else {}
    if given.get("domains") and not _embeds(settings, given["domains"]):
        return {}
    if file is None and name != "ml-100k" and not (data_path / name).is_dir():  # RecBole carries that one itself
        raise DataError(
            f"no property file {data_path / name}.yaml, no packaged one, no folder {data_path / name}",
            where=f"dataset {name!r}",
            mend="Set data_path to the folder that holds your domains, or name them with domains: [A, B]",
        )
    if settings.get("embedded_data") is not None:
        from recbole_gmc.data.quick_start import prepare

        folder = prepare(settings["embedded_data"], (place(given, "cache_dir") or Path(CACHE)).expanduser())
        settings["data_path"] = str(folder)
    return settings


def _embeds(settings: Mapping[str, Any], domains: Any) -> bool:
    """Whether the data set is embedded and has all these domains."""
    known = settings.get("domains") or () if settings.get("embedded_data") else ()
    return isinstance(domains, (list, tuple)) and all(domain in known for domain in domains)
