"""Flags of the command line as a dict of texts, and hidden from RecBole where they were read."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from recbole_gmc import keys
from recbole_gmc.errors import SettingError
from recbole_gmc.values import at_home

WORDS = ("help", "version")  # told to who mistypes them


def flags_of(arguments: Sequence[str], own: Collection[str] = ()) -> dict[str, str]:
    """``--key=value`` (split at the first ``=``) and ``--key value`` as a dict of texts.

    Args:
        own: flags of a command beside the settings of a run.

    Raises:
        SettingError: anything else, an unknown key (with the nearest known one), or a key given twice.
    """
    flags: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument[2:].partition("=")
        if not argument.startswith("--") or not key:
            raise SettingError(f"{argument!r} is not a setting", mend="Write --key=value")
        if key not in own:
            keys.refuse_unknown([key], own, WORDS)
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise SettingError("has no value", where=f"--{key}", mend=f"Write --{key}=value")
            value = rest.pop(0)
        value = at_home(value)
        if flags.setdefault(key, value) != value:
            raise SettingError(f"given twice, as {flags[key]!r} and {value!r}", where=f"--{key}", mend="Give it once")
    return flags


@contextmanager
def only_program_name() -> Iterator[None]:
    """Hides the command line from RecBole's Config: its flags are in ``config_dict`` already, parsed and checked."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        yield
    finally:
        sys.argv = arguments
