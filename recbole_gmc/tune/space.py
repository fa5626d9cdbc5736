"""Search spaces from property files: which settings a search may change, and to what."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_gmc import keys, lookup, values
from recbole_gmc.errors import SettingError

KINDS = {"choice": 1, "uniform": 2, "loguniform": 2, "quniform": 3}  # kind -> numbers that it takes
FORM = "Write `<setting>: {choice: [a, b]}`, uniform or loguniform with [low, high], or quniform with [low, high, step]"
_LINE = re.compile(r"(\S+)\s+(choice|uniform|loguniform|quniform)\s+(.+)")


@dataclass(frozen=True)
class Range:
    """The values that one setting may take.

    Attributes:
        kind: ``choice``, ``uniform``, ``loguniform`` (uniform in the logarithm) or ``quniform`` (steps).
        given: the values of a choice; else low, high and, for ``quniform``, the step.
    """

    kind: str
    given: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values of a choice; else the least and the largest one, as settings."""
        return self.given if self.kind == "choice" else tuple(self.setting(end) for end in self.given[:2])

    @property
    def size(self) -> int | None:
        """How many values there are; ``None`` where they cannot be counted."""
        if self.kind == "choice":
            return len(self.given)
        low, high = self.given[:2]
        return int((high - low) / self.given[2] + 1e-9) + 1 if self.kind == "quniform" else None

    def setting(self, drawn: Any) -> Any:
        """What was drawn as a setting: lists instead of tuples, whole numbers where the range has no others."""
        if self.kind == "choice":
            return _plain(drawn)
        if self.kind == "quniform":
            low, high, step = self.given
            drawn = min(max(float(drawn), low), high)
            return round(drawn) if all(isinstance(number, int) for number in self.given) else round(drawn, 12)
        return float(drawn)


@dataclass(frozen=True)
class Space:
    """Setting -> the values that a search may give it."""

    ranges: Mapping[str, Range]

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """One point of the space as settings, in the order of the file."""
        return {name: part.setting(drawn[name]) for name, part in self.ranges.items()}

    def corners(self) -> Iterator[dict[str, Any]]:
        """Settings that show every value of every choice and both ends of every range, each with its key alone."""
        for name, part in self.ranges.items():
            for value in part.ends:
                yield {name: value}

    @property
    def size(self) -> int | None:
        """How many points there are; ``None`` where they cannot be counted."""
        sizes = [part.size for part in self.ranges.values()]
        return None if None in sizes else math.prod(sizes)

    def facts(self) -> dict[str, Any]:
        return {name: {part.kind: list(part.given)} for name, part in self.ranges.items()}

    def for_hyperopt(self) -> dict[str, Any]:
        from hyperopt import hp

        made = {}
        for name, part in self.ranges.items():
            given = [math.log(end) for end in part.given] if part.kind == "loguniform" else list(part.given)
            made[name] = hp.choice(name, given) if part.kind == "choice" else getattr(hp, part.kind)(name, *given)
        return made

    def for_ray(self, every: bool) -> dict[str, Any]:
        """``every``: all combinations of choices instead of random ones."""
        from ray import tune

        def made(part: Range) -> Any:
            if part.kind == "choice":
                return tune.grid_search(list(part.given)) if every else tune.choice(list(part.given))
            return getattr(tune, part.kind)(*part.given)

        return {name: made(part) for name, part in self.ranges.items()}


def read_space(file: str | Path) -> Space:
    """Reads a YAML search space, or RecBole's lines ``<setting> <kind> <values>``.

    In YAML the ends of ``loguniform`` are values of the setting. In RecBole's lines they are logarithms, as there.

    Raises:
        SettingError: a file that is neither, an unknown setting, kind or value, with the place.
    """
    path = lookup.find_yaml(file)
    text = values.read_text(path)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if lines and all(_LINE.fullmatch(line) for _, line in lines):
        ranges = _from_lines(lines, str(path))
    else:
        ranges = {name: _from_yaml(entry, f"{path}: {name}") for name, entry in values.read_yaml(path).items()}
    if not ranges:
        raise SettingError("names no setting to search over", str(path), FORM)
    keys.refuse_unknown(ranges)
    return Space(ranges)


def _from_lines(lines: list[tuple[int, str]], path: str) -> dict[str, Range]:
    ranges: dict[str, Range] = {}
    for number, line in lines:
        name, kind, text = _LINE.fullmatch(line).groups()
        where = f"{path}:{number}"
        if name in ranges:
            raise SettingError(f"{name} is named twice", where, "Name each setting once")
        try:
            given = ast.literal_eval(text if kind == "choice" else f"[{text}]")
        except (ValueError, SyntaxError):
            raise SettingError(f"{text!r} is no list of plain values", where, f"Write `{name} choice [1, 2]`") from None
        made = _range(kind, given, where)
        if kind == "loguniform":
            made = Range(kind, tuple(math.exp(end) for end in made.given))
        ranges[name] = made
    return ranges


def _from_yaml(entry: Any, where: str) -> Range:
    if isinstance(entry, list):
        entry = {"choice": entry}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise SettingError(f"{entry!r} is no range of values", where, FORM)
    ((kind, given),) = entry.items()
    if kind not in KINDS:
        raise SettingError(f"{kind!r} is no kind of range{keys.nearest(str(kind), KINDS)}", where, FORM)
    made = _range(kind, given, where)
    if kind == "loguniform" and made.given[0] <= 0:
        raise SettingError(f"{made.given[0]} has no logarithm", where, "Start the range above 0")
    return made


def _range(kind: str, given: Any, where: str) -> Range:
    if not isinstance(given, (list, tuple)) or not given:
        raise SettingError(f"{given!r} is no list of values", where, FORM)
    if kind == "choice":
        return Range(kind, tuple(_plain(value) for value in given))
    numbers = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in given)
    if not numbers or len(given) != KINDS[kind]:
        raise SettingError(f"{list(given)} is not {KINDS[kind]} numbers", where, FORM)
    if not given[0] < given[1] or (kind == "quniform" and given[2] <= 0):
        raise SettingError(f"{list(given)} holds no values between its ends", where, FORM)
    return Range(kind, tuple(given))


def _plain(value: Any) -> Any:
    """Tuples, as hyperopt hands lists back, are lists again."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, dict) else value
