"""Search spaces from property files: which settings a search may change, and to what."""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_gmc import keys, lookup, values
from recbole_gmc.errors import SettingError
from recbole_gmc.files import hash_of

KINDS = {"choice": 1, "uniform": 2, "loguniform": 2, "quniform": 3}  # kind -> numbers that it takes
FORM = "Write `<setting>: {choice: [a, b]}`, uniform or loguniform with [low, high], or quniform with [low, high, step]"
SMALL = 10_000  # points; of more, single ones are drawn
FIXED = {  # why the values of some settings cannot be compared by a validation score
    "one search is of one model on one data set": "model dataset",
    "trials are scored on the same users and items": "domains data_path load_col eval_args valid_users val_interval "
    "user_inter_num_interval item_inter_num_interval rm_dup_inter",
    "trials are compared by one metric": "valid_metric valid_metric_bigger metrics topk",
    "every trial has a folder of its own": "run_dir resume checkpoint_dir cache_dir",
}
_LINE = re.compile(r"(\S+)\s+(choice|uniform|loguniform|quniform)\s+(.+)")


@dataclass(frozen=True)
class Listed:
    """A choice whose value is a list or a mapping, which hyperopt would take for a space of its own."""

    value: Any

    def __repr__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True)
class Range:
    """The values that one setting may take.

    Attributes:
        kind: ``choice``, ``uniform``, ``loguniform`` (uniform in the logarithm) or ``quniform`` (multiples of a step).
        given: the values of a choice; else low, high and, for ``quniform``, the step.
    """

    kind: str
    given: tuple[Any, ...]

    @property
    def size(self) -> int | None:
        """How many values there are; ``None`` where they cannot be counted."""
        if self.kind == "choice":
            return len(self.given)
        low, high = self.given[:2]
        return round((high - low) / self.given[2]) + 1 if self.kind == "quniform" else None

    def value(self, number: int) -> Any:
        """One of ``size`` values, as a setting."""
        return self.given[number] if self.kind == "choice" else self.setting(self.given[0] + number * self.given[2])

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values of a choice; else the least and the largest one, as settings."""
        return self.given if self.kind == "choice" else tuple(self.setting(end) for end in self.given[:2])

    def setting(self, drawn: Any) -> Any:
        """What was drawn as a setting: lists instead of tuples, whole numbers where the range has no others."""
        if self.kind == "choice":
            return _plain(drawn.value if isinstance(drawn, Listed) else drawn)
        if self.kind == "quniform":
            whole = all(isinstance(number, int) for number in self.given)
            return round(drawn) if whole else round(float(drawn), 12) + 0.0  # no -0.0
        return float(drawn)

    def drawn(self, generator: np.random.Generator) -> Any:
        """A random value, as a setting."""
        if self.size is not None:
            return self.value(int(generator.integers(self.size)))
        if self.kind == "loguniform":
            return math.exp(generator.uniform(*(math.log(end) for end in self.given)))
        return float(generator.uniform(*self.given))

    def for_hyperopt(self, name: str) -> Any:
        from hyperopt import hp

        if self.kind == "choice":
            nested = (list, tuple, dict)
            return hp.choice(name, [Listed(value) if isinstance(value, nested) else value for value in self.given])
        given = [math.log(end) for end in self.given] if self.kind == "loguniform" else self.given
        return getattr(hp, self.kind)(name, *given)


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

    def grid(self) -> list[dict[str, Any]]:
        """All points of a space that can be counted."""
        listed = self.listed().ranges
        rows = itertools.product(*(part.given for part in listed.values()))
        return [dict(zip(listed, row, strict=True)) for row in rows]

    def sample(self, number: int, seed: int) -> list[dict[str, Any]]:
        """So many random points, no two of them equal, the same by the same seed; the grid where it has no more."""
        generator, size, found = np.random.default_rng(seed), self.size, {}
        if size is not None and size <= max(2 * number, SMALL):
            points = self.grid()
            if number >= size:
                return points
            return [points[place] for place in generator.permutation(size)[:number]]
        while len(found) < number:
            point = {name: part.drawn(generator) for name, part in self.ranges.items()}
            found[hash_of(point)] = point
        return list(found.values())

    def listed(self) -> Space:
        """The same points as choices, of a space that can be counted."""
        every = {name: tuple(map(part.value, range(part.size))) for name, part in self.ranges.items()}
        return Space({name: Range("choice", values) for name, values in every.items()})

    def facts(self) -> dict[str, Any]:
        return {name: {part.kind: list(part.given)} for name, part in self.ranges.items()}

    def for_hyperopt(self) -> dict[str, Any]:
        return {name: part.for_hyperopt(name) for name, part in self.ranges.items()}


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
    if any(_LINE.fullmatch(line) for _, line in lines) or not any(":" in line for _, line in lines):
        ranges = _from_lines(lines, str(path))
    else:
        _refuse_twice(text, str(path))
        ranges = {name: _from_yaml(entry, f"{path}: {name}") for name, entry in values.read_yaml(path).items()}
    if not ranges:
        raise SettingError("names no setting to search over", str(path), FORM)
    keys.refuse_unknown(ranges)
    for reason, names in FIXED.items():
        if found := [name for name in ranges if name in names.split()]:
            raise SettingError(f"cannot be searched, as {reason}", f"{path}: {found[0]}", "Leave it out")
    return Space(ranges)


def _refuse_twice(text: str, path: str) -> None:
    """YAML itself would take the last of two."""
    try:
        found = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return  # said by who reads it
    seen = set()
    for name, _ in found.value if isinstance(found, yaml.MappingNode) else ():
        if str(name.value) in seen:
            where = f"{path}:{name.start_mark.line + 1}"
            raise SettingError(f"{name.value} is named twice", where, "Name each setting once")
        seen.add(str(name.value))


def _from_lines(lines: list[tuple[int, str]], path: str) -> dict[str, Range]:
    ranges: dict[str, Range] = {}
    for number, line in lines:
        where, parts = f"{path}:{number}", _LINE.fullmatch(line)
        if parts is None:
            raise SettingError(f"{line!r} is no range of values", where, f"Write `<setting> choice [1, 2]`. {FORM}")
        name, kind, text = parts.groups()
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
        values = [_plain(value) for value in given]
        for number, value in enumerate(values):
            if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[:number]):
                raise SettingError(f"{value!r} is named twice", where, "Name each value once")
        return Range(kind, tuple(values))
    numbers = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in given)
    if not numbers or len(given) != KINDS[kind]:
        raise SettingError(f"{list(given)} is not {KINDS[kind]} numbers", where, FORM)
    if not given[0] < given[1] or (kind == "quniform" and given[2] <= 0):
        raise SettingError(f"{list(given)} holds no values between its ends", where, FORM)
    if kind == "quniform" and any(abs(end / given[2] - round(end / given[2])) > 1e-9 for end in given[:2]):
        mend = "Its values are the multiples of the step from low to high: write such ends, or a choice"
        raise SettingError(f"{list(given)} has ends that are no multiples of its step", where, mend)
    return Range(kind, tuple(given))


def _plain(value: Any) -> Any:
    """Tuples, as hyperopt hands lists back, are lists again."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, dict) else value
