"""Text to values: settings given as strings, and YAML files. Nothing here runs code that a value may hold."""

from __future__ import annotations

import ast
import os.path
import re
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml

from recbole_gmc.errors import SettingError

# Keys whose value is a name or a path, or text that RecBole parses itself: `--dataset=2019` and `[5,10]` stay text.
VERBATIM = frozenset(
    "model dataset data_path checkpoint_dir run_dir cache_dir config_files gpu_id resume text_encoder "
    "semantic_ids_path user_inter_num_interval item_inter_num_interval entity_kg_num_interval "
    "relation_kg_num_interval".split()
)
PLACES = frozenset("data_path checkpoint_dir run_dir cache_dir semantic_ids_path".split())
NAMES = frozenset({"domains"})  # lists whose elements are names
NOTHING = ("~", "null", "None")
PLAIN = (str, int, float, bool, type(None))
_WORDS = re.compile(r"""[^\s,\[\](){}"'#:]+(,[^\s,\[\](){}"'#:]+)+""")


class Loader(yaml.SafeLoader):
    """Plain values only, with RecBole's reading of numbers (``1e-3`` is one)."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


class NameLoader(yaml.BaseLoader):
    """Every scalar is text."""


def load_yaml(text: str, where: str | None = None) -> Any:
    """Reads YAML into plain values.

    Raises:
        SettingError: text that is not YAML, or a tag that asks for anything but plain values, with file:line.
    """
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingError(
            f"not plain YAML: {problem}", where=f"{where or 'YAML'}{line}", mend="Write `key: value` with plain values"
        ) from error


def read_text(file: str | Path) -> str:
    """The text of a file of settings; raises SettingError unless it can be read as UTF-8."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read as UTF-8 text ({error})"
        raise SettingError(what, where=str(file), mend="Save it as UTF-8 where it can be read") from error


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Reads one YAML file of settings; an empty file has none."""
    settings = load_yaml(read_text(file), str(file))
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise SettingError(
            "is not a list of `key: value` settings", where=str(file), mend="See properties/model/GMC.yaml"
        )
    return {key: at_home(value) if key in PLACES else value for key, value in settings.items()}


def at_home(value: Any) -> Any:
    """A place ``~/x`` below the user's home folder; shells leave it as it is behind ``--key=``. Others stay."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def parse_all(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Parses every value that is a string; others stay."""
    return {key: parse(key, value) if isinstance(value, str) else value for key, value in settings.items()}


def parse(key: str, text: str) -> Any:
    """The value that the text of one setting means.

    A Python literal is that value (a tuple becomes a list); text in brackets or braces is read as a YAML flow value;
    words joined by commas without a blank (``A,B``, ``5,10``) are a list; anything else is one YAML scalar. What fits
    none of these, code among them, stays text. Names, paths and intervals (``VERBATIM``) are never interpreted.
    """
    if key in VERBATIM:
        if text in NOTHING:
            return None
        return at_home(text) if key in PLACES else text
    if key in NAMES:
        return _names(text)
    try:
        value = ast.literal_eval(text)
        if isinstance(value, tuple):
            value = list(value)
        if _is_plain(value):
            return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    if text[:1] in ("[", "{"):
        return _flow(text, Loader, text)
    if _WORDS.fullmatch(text):
        return [_scalar(word) for word in text.split(",")]
    return _scalar(text)


def _names(text: str) -> list[str] | str | None:
    if text in NOTHING:
        return None
    if text.startswith("["):
        return _flow(text, NameLoader, text)
    return [word.strip() for word in text.split(",")]


def _flow(text: str, loader: type, default: Any) -> Any:
    try:
        value = yaml.load(text, Loader=loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        return default
    return value if _is_plain(value) else default


def _scalar(text: str) -> Any:
    """One YAML scalar: null, a boolean, a number, else text (also dates, times and ``007``, which RecBole keeps)."""
    if not text or ":" in text or re.fullmatch(r"[-+]?0[0-9_]+", text):
        return text
    loader = Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False)).rpartition(":")[2]
        if tag not in ("null", "bool", "int", "float"):
            return text
        return loader.construct_object(yaml.ScalarNode(f"tag:yaml.org,2002:{tag}", text))
    except ValueError:
        return text
    finally:
        loader.dispose()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    return isinstance(value, PLAIN)


def flags_of_program(arguments: Sequence[str]) -> dict[str, str]:
    """The ``--key=value`` arguments after the program's name, split at the first ``=``; others are warned about.

    Raises:
        SettingError: one key with two values.
    """
    flags: dict[str, str] = {}
    foreign = []
    if not arguments or "ipykernel_launcher" in arguments[0]:
        return flags
    for argument in arguments[1:]:
        key, equals, value = argument[2:].partition("=")
        if not argument.startswith("--") or not equals or not key:
            foreign.append(argument)
        elif flags.setdefault(key, value) != value:
            raise SettingError(f"given twice, as {flags[key]!r} and {value!r}", where=f"--{key}", mend="Give it once")
    if foreign:
        getLogger().warning("command line args [%s] will not be used in RecBole", " ".join(foreign))
    return flags
