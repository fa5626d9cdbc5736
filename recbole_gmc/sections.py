"""Settings of one model inside a file for several: a top-level key that is a model's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_gmc import keys, lookup, registry
from recbole_gmc.errors import SettingError

FILES = "config_files"


def for_model(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The settings that a file for several models has for one of them.

    ``epochs: 5`` and ``GMC: {epochs: 60}`` give GMC 60 and any other model 5. A section may name files, too:
    ``GMC: {config_files: [properties/preset/cpu.yaml], learning_rate: 0.002}``; its own settings come on top of them.

    Raises:
        SettingError: a section, of whatever model, that is no mapping or names an unknown setting.
    """
    models = registry.all_names()
    return {**{name: value for name, value in settings.items() if name not in models}, **of(settings, model)}


def of(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The model's own section; every section is checked."""
    models = registry.all_names()
    found = {name: _section(name, settings[name]) for name in settings if name in models}
    return found.get(model, {})


def _section(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingError(f"{value!r} is no section of settings", name, f"Write {name}: {{epochs: 5}}")
    own = dict(value)
    files = own.pop(FILES, None) or ()
    keys.refuse_unknown(own)
    return {**lookup.read_files(files.split() if isinstance(files, str) else files), **own}
