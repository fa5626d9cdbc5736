"""Raw interactions, read by code that no model uses: what lists are held against, and what reports show beside them.

Nothing of the package's data reading or splitting is imported here, on purpose.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_gmc.errors import SettingError

TESTED, VALIDATED = 3, 4  # interactions of a user; not those of ``split``, on purpose
FIELDS = (("USER_ID_FIELD", "user_id"), ("ITEM_ID_FIELD", "item_id"), ("TIME_FIELD", "timestamp"))  # and their defaults


@dataclass(frozen=True)
class RawData:
    """What of the ``.inter`` files counts.

    Attributes:
        columns: of users, items and times.
        core: users and items with fewer interactions are removed until none is left.
        separator: between the columns.
    """

    columns: tuple[str, str, str] = ("user_id", "item_id", "timestamp")
    core: tuple[float, float] = (0, 0)
    separator: str = "\t"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> RawData:
        """As a run's settings have it.

        Raises:
            SettingError: a filter that is not read here, or an interval of another form than ``[5,inf)``, which has
                more than one fixed point.
        """
        for key in ("val_interval", "rm_dup_inter", "missing_text"):
            if settings.get(key) not in ((None, "placeholder", "error") if key == "missing_text" else (None, {})):
                what = "what is left of the raw files by this is not known here"
                raise SettingError(what, key, "Filter the files beforehand")
        columns = [settings.get(key) or usual for key, usual in FIELDS]
        core = [_least(settings.get(f"{kind}_inter_num_interval"), kind) for kind in ("user", "item")]
        separator = settings.get("field_separator") or "\t"
        return cls((columns[0], columns[1], columns[2]), (core[0], core[1]), separator)

    def sequences(self, root: Path, domain: str) -> dict[str, list[str]]:
        """User -> items of all interactions, oldest first; of equal times the later line is the later one.

        Raises:
            OSError, ValueError, IndexError: no such file, one without these columns, or a row that is too short.
        """
        histories: dict[str, list[tuple[float, int, str]]] = {}
        for line, (user, item, time) in enumerate(self._rows(root / domain / f"{domain}.inter")):
            histories.setdefault(user, []).append((time, line, item))
        return {user: [item for _, _, item in sorted(history)] for user, history in histories.items()}

    def _rows(self, path: Path) -> list[tuple[str, str, float]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=self.separator, quoting=csv.QUOTE_NONE)
            names = [column.partition(":")[0] for column in next(reader, ())]
            user, item, time = (names.index(column) for column in self.columns)
            # RecBole keeps times in single precision, so times that differ by less are ties
            rows = [(row[user], row[item], float(np.float32(row[time]))) for row in reader if row]
        while True:
            users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
            kept = [row for row in rows if users[row[0]] >= self.core[0] and items[row[1]] >= self.core[1]]
            if len(kept) == len(rows):
                return rows
            rows = kept


def trained_part(sequence: Sequence[str]) -> Sequence[str]:
    """A user's training items: all but those held out."""
    return sequence[: len(sequence) - (len(sequence) >= TESTED) - (len(sequence) >= VALIDATED)]


def _least(interval: Any, kind: str) -> float:
    """The lower end of ``[5,inf)``."""
    if not interval:
        return 0.0
    text = str(interval).replace(" ", "")
    low, _, high = text[1:-1].partition(",")
    if text[:1] == "[" and high == "inf":
        try:
            return float(low)
        except ValueError:
            pass
    where = f"{kind}_inter_num_interval"
    raise SettingError(f"{interval!r} has another form", where, "What is checked takes intervals such as [5,inf)")
