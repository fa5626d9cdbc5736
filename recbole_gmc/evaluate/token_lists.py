"""A run's lists by token, for who has its file alone."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_gmc.errors import DataError
from recbole_gmc.evaluate import per_user


@dataclass(frozen=True)
class TokenLists:
    """The lists of n users.

    Attributes:
        domain, user, target: n tokens each.
        rank: int64 [n], 0-based place of the target, -1 for a miss.
        items: n lists, best first.
        width: places of a list; a short catalogue leaves some empty.
    """

    domain: tuple[str, ...]
    user: tuple[str, ...]
    target: tuple[str, ...]
    rank: np.ndarray
    items: tuple[tuple[str, ...], ...]
    width: int

    def __len__(self) -> int:
        return len(self.user)

    def ndcg(self, k: int) -> np.ndarray:
        """float64 [n]: 1 / log2(rank + 2) for a rank below k, else 0."""
        return per_user.ndcg(self.rank, k)

    @classmethod
    def read(cls, path: Path) -> TokenLists:
        """From topk.tsv or valid_topk.tsv.

        Raises:
            DataError: a missing file, or a line of another form, with file:line.
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", str(path), "Run again with --resume") from error
        columns = len(rows[0]) if rows else 0
        for number, row in enumerate(rows, 1):
            whole = number == 1 or row[3:4] and row[3].removeprefix("-").isdecimal()
            if len(row) != columns or columns < 6 or columns % 2 or not whole:
                raise DataError("not a line of a top-k table", f"{path}:{number}", "Write the table again")
        body = rows[1:]
        items = (zip(row[4::2], row[5::2], strict=True) for row in body)
        named = tuple(zip(*(row[:3] for row in body), strict=True)) or ((), (), ())
        return cls(
            *named,
            rank=np.array([int(row[3]) for row in body], np.int64),
            items=tuple(tuple(item for item, score in pairs if score != "") for pairs in items),
            width=(columns - 4) // 2,
        )
