"""The ranked lists of a run as one value, and the file that lets anyone recompute every metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from recbole_gmc.errors import DataError
from recbole_gmc.files import new_file
from recbole_gmc.items import ItemIndex

LISTS, VALID_LISTS = "topk.tsv", "valid_topk.tsv"  # of a run's test and validation users
MISSING = "-1"


@dataclass(frozen=True)
class TopKTable:
    """One ranked list a user.

    Attributes:
        items: what the row numbers below mean.
        domain: int64 [n], the position of the user's domain in ``items.domains``.
        user: n original user tokens.
        target: int64 [n], the held-out item's row.
        ranked: int64 [n, K], item rows, best first; -1 past the end of a short catalogue.
        scores: float32 [n, K]; -inf where ``ranked`` is -1.
        certified: bool [n], lists that are provably the true top-K.
    """

    items: ItemIndex
    domain: np.ndarray
    user: tuple[str, ...]
    target: np.ndarray
    ranked: np.ndarray
    scores: np.ndarray
    certified: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def rank(self) -> np.ndarray:
        """int64 [n]: the target's 0-based place in its list, -1 for a miss."""
        hit = (self.ranked == self.target[:, None]) & (self.ranked >= 0)
        return np.where(hit.any(1), hit.argmax(1), -1)

    def of_domain(self, position: int) -> TopKTable:
        keep = np.flatnonzero(self.domain == position)
        return TopKTable(
            self.items,
            self.domain[keep],
            tuple(self.user[i] for i in keep),
            self.target[keep],
            self.ranked[keep],
            self.scores[keep],
            self.certified[keep],
        )

    def write(self, path: str | Path) -> None:
        """Writes the tab-separated ``topk.tsv``: domain, user, target, rank, then K pairs of item and score.

        ``-1`` stands for a target outside the catalogue and, with an empty score, for a place past its end. An item
        may have the token ``-1``, too: in a list its score tells, as a target its rank (``read``).
        """
        names = np.array([token for domain in self.items.domains for token in self.items.tokens[domain]] + [MISSING])
        width = self.ranked.shape[1]
        head = ["domain", "user_id", "target_item", "rank"]
        with new_file(path) as file:
            file.write("\t".join(head + [f"{what}_{k}" for k in range(1, width + 1) for what in ("item", "score")]))
            file.write("\n")
            for line in self._lines(names):
                file.write(line + "\n")

    def _lines(self, names: np.ndarray) -> Iterator[str]:
        for i, user in enumerate(self.user):
            domain = self.items.domains[self.domain[i]]
            fields = [domain, user, names[self.target[i]], str(self.rank[i])]
            for row, score in zip(self.ranked[i], self.scores[i], strict=True):
                fields += [names[row], "" if row < 0 else f"{score:.6f}"]
            yield "\t".join(fields)

    @classmethod
    def read(cls, path: str | Path, items: ItemIndex, among_others: bool = False) -> TopKTable:
        """Reads ``topk.tsv`` back; certificates are not in the file and read as ``False``.

        Args:
            among_others: passes over lines of domains that ``items`` does not have.

        A target ``-1`` where an item has this token is the item, unless the list holds the item and the rank denies it.

        Raises:
            DataError: a line of another form, an unknown item, or a rank that is not the target's, with file:line.
        """
        path = Path(path)
        rows: list[tuple] = []
        with path.open(encoding="utf-8", newline="\n") as file:
            width = (len(file.readline().rstrip("\n").split("\t")) - 4) // 2
            for number, line in enumerate(file, 2):
                if among_others and line.partition("\t")[0] not in items.row_of:
                    continue
                try:
                    rows.append(_row(line.rstrip("\n").split("\t"), items, width))
                except KeyError as error:
                    what = f"unknown item {error}"
                    raise DataError(what, f"{path}:{number}", "Use the run's own items") from None
                except ValueError as error:
                    mend = "Write the table again"
                    raise DataError(f"not a line of a top-k table ({error})", f"{path}:{number}", mend) from None
        domain, user, target, ranked, scores = zip(*rows, strict=True) if rows else ((), (), (), (), ())
        return cls(
            items,
            np.array(domain, np.int64),
            tuple(user),
            np.array(target, np.int64),
            np.array(ranked, np.int64).reshape(-1, width),
            np.array(scores, np.float32).reshape(-1, width),
            np.zeros(len(rows), bool),
        )


def _row(fields: list[str], items: ItemIndex, width: int) -> tuple[int, str, int, list[int], list[float]]:
    """One line as domain, user, target, ranked and scores; ``KeyError`` for an item, ``ValueError`` for all else."""
    if len(fields) != 4 + 2 * width:
        raise ValueError(f"{len(fields)} fields, not {4 + 2 * width}")
    name, user, token, rank = fields[:4]
    if name not in items.row_of:
        raise ValueError(f"no domain {name!r}")
    rows = items.row_of[name]
    pairs = list(zip(fields[4::2], fields[5::2], strict=True))
    ranked = [-1 if (item, score) == (MISSING, "") else rows[item] for item, score in pairs]
    scores = [-np.inf if row < 0 else float(score) for row, (_, score) in zip(ranked, pairs, strict=True)]
    target = rows[token] if token != MISSING else rows.get(MISSING, -1)
    place = ranked.index(target) if target >= 0 and target in ranked else -1
    if token == MISSING and int(rank) < 0:
        target, place = (-1, -1) if place >= 0 else (target, place)
    if int(rank) != place:
        raise ValueError(f"rank {rank}, but the target's place is {place}")
    return items.domains.index(name), user, target, ranked, scores
