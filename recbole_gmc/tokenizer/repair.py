"""The repair that makes codes unique inside a domain, moving as few items as little as possible.

The rule, domain by domain:

1. A *group* is the items with equal first L-1 codes. Where more than N items share a group, the surplus moves to
   sibling groups (another code at level L-1, equal before it). The nearest holder of each last code stays; of the
   others those leave whose change of level L-1 adds the least squared error, one by one, to groups that have room.
2. Inside a group with equal IDs, all last codes are chosen at once by a minimum-cost assignment: first as many items as
   possible keep their code (so an item that is alone on its code never moves), then the sum of squared distances
   between last residual and last code is least.
3. Ties follow the order of the item tokens, so the order of rows in a file never matters.

More than N^2 items with equal first L-2 codes (more than N where L = 1) cannot be separated this way and are refused.

The work is linear in the items, sorting aside: only items whose code is taken are looked at, with the free codes of
their own group. The assignment of step 2 takes the cube of a group's size, which is at most N: so where the items to
place times the free codes pass ``EXACT_CELLS`` (never with N up to 1,024), the nearest holder of each code stays and
the others take free codes by the greedy rule of step 1 instead, the nearest pair first.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment

from recbole_gmc.errors import TokenizerError
from recbole_gmc.tokenizer.prefixes import Groups, prefix_keys
from recbole_gmc.vectors import Vectors, row_parts

EXACT_CELLS = 1 << 20
BATCH_CELLS = 1 << 20  # distances that are held at once, from one reading of latents


class Repair:
    """The repair of one domain.

    Args:
        codes: int32 [n, L], changed in place.
        latents: [items, d] of all domains; the domain's begin at row ``start``.
        codebooks: [L, N, d].
    """

    def __init__(self, domain: str, codes: np.ndarray, latents: Vectors, start: int, codebooks: np.ndarray) -> None:
        self.domain, self.codes, self.latents, self.start = domain, codes, latents, start
        self.codebooks = np.asarray(codebooks, dtype=np.float64)
        self.levels, self.size = codebooks.shape[:2]
        self.homeless = np.zeros(len(codes), dtype=bool)  # left its group in step 1, so it has no last code to keep

    def run(self) -> None:
        """Raises ``TokenizerError`` where items cannot be separated."""
        self._refuse_what_cannot_be()
        if self.levels > 1:
            self._spread_surplus()
        for batch in self._batches():
            if len(batch) == 1 and len(batch[0][0]) * len(batch[0][1]) > EXACT_CELLS:
                self._separate_greedily(*batch[0])
                continue
            distances = self._distances(np.concatenate([loose for loose, _ in batch]), self.levels - 1)
            start = 0
            for loose, free in batch:
                self._separate(loose, free, distances[start : start + len(loose), free])
                start += len(loose)

    def _refuse_what_cannot_be(self) -> None:
        free = min(self.levels, 2)  # the levels that the repair may change
        most = int(Groups.of(prefix_keys(self.codes[:, : self.levels - free])).sizes.max())
        if most > self.size**free:
            need = most if free == 1 else math.isqrt(most - 1) + 1
            raise TokenizerError(
                f"{most} items of domain {self.domain!r} share the first {self.levels - free} codes; "
                f"codebooks of {self.size} codes can tell {self.size**free} apart",
                where="codebook_size",
                mend=f"Set codebook_size to {need} or more, or use embeddings that tell the items apart",
            )

    def _residuals(self, rows: np.ndarray, level: int) -> Iterator[tuple[slice, np.ndarray]]:
        """float64 [some rows, d]: what enters ``level``, block by block, and of which of ``rows``."""
        for place, part in row_parts(rows, max(self.latents.shape[1], self.size)):
            residual = np.array(self.latents[self.start + part], dtype=np.float64)
            for before in range(level):
                residual -= self.codebooks[before, self.codes[part, before]]
            yield place, residual

    def _distances(self, rows: np.ndarray, level: int) -> np.ndarray:
        """Squared distances [rows, N] between the input residuals of ``level`` and its codes."""
        found = np.empty((len(rows), self.size))
        for place, residual in self._residuals(rows, level):
            found[place] = squared_distances(residual, self.codebooks[level])
        return found

    def _distances_to_own(self, rows: np.ndarray) -> np.ndarray:
        """[rows]: those to the code that an item has at the last level."""
        found = np.empty(len(rows))
        for place, residual in self._residuals(rows, self.levels - 1):
            found[place] = ((residual - self.codebooks[-1, self.codes[rows[place], -1]]) ** 2).sum(axis=1)
        return found

    # -- step 1 ----------------------------------------------------------------------------------------------------

    def _spread_surplus(self) -> None:
        groups = Groups.of(prefix_keys(self.codes[:, :-1]))
        over = np.flatnonzero(groups.sizes > self.size)
        if not len(over):
            return
        families = Groups.of(prefix_keys(self.codes[:, :-2]))
        place = np.empty(len(self.codes), dtype=np.int64)  # of each row, its family
        place[families.order] = np.repeat(np.arange(len(families)), families.sizes)
        for family in np.unique(place[groups.order[groups.starts[over]]]):
            self._spread(families.rows(family))

    def _spread(self, rows: np.ndarray) -> None:
        """For the items ``rows`` with equal first L-2 codes."""
        sizes = np.bincount(self.codes[rows, -2], minlength=self.size)
        for code in np.flatnonzero(sizes > self.size):
            group = rows[self.codes[rows, -2] == code]
            last = self.codes[group, -1]
            order = np.lexsort((group, self._distances_to_own(group), last))
            first = np.append(True, np.diff(last[order]) != 0)
            movable = np.sort(group[order[~first]])
            added = functools.partial(self._added, movable, code)
            targets = nearest_first(added, len(movable), self.size - sizes, sizes[code] - self.size)
            moved = targets >= 0
            self.codes[movable[moved], -2] = targets[moved]
            self.homeless[movable[moved]] = True
            sizes += np.bincount(targets[moved], minlength=self.size)
            sizes[code] -= moved.sum()

    def _added(self, movable: np.ndarray, code: int, items: np.ndarray) -> np.ndarray:
        """[items, N]: what other codes than ``code`` at level L-1 add to the squared error of ``movable[items]``."""
        distances = self._distances(movable[items], self.levels - 2)
        return distances - distances[:, [code]]

    # -- step 2 ----------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """Groups with something to separate, some at a time: the rows to place (ascending) and the free codes."""
        last, prefix = self.codes[:, -1], prefix_keys(self.codes[:, :-1])
        order = np.lexsort((self.homeless, last, prefix))
        change = np.append(True, np.diff(prefix[order]) != 0)
        del prefix
        starts = np.append(np.flatnonzero(change), len(order))
        held = ~self.homeless[order]
        # who stands on the code of a neighbour, among those who have a code to keep
        same = np.append(False, ~change[1:] & (np.diff(last[order]) == 0)) & held
        shared = same.copy()
        shared[:-1] |= same[1:] & held[:-1]
        loose = shared | ~held
        batch: list[tuple[np.ndarray, np.ndarray]] = []
        cells = 0
        for group in np.unique(np.searchsorted(starts, np.flatnonzero(loose), side="right") - 1):
            mine = slice(starts[group], starts[group + 1])
            rows, taken = order[mine], ~loose[mine]
            free = np.delete(np.arange(self.size), last[rows[taken]])
            rows = np.sort(rows[~taken])
            more = len(rows) * self.size
            if batch and cells + more > BATCH_CELLS:
                yield batch
                batch, cells = [], 0
            batch.append((rows, free))
            cells += more
        if batch:
            yield batch

    def _separate(self, rows: np.ndarray, free: np.ndarray, cost: np.ndarray) -> None:
        """Gives the items ``rows`` of one group a code of ``free`` each, at ``cost`` [rows, free]."""
        scale = cost.max()
        moves = (self.codes[rows, -1][:, None] != free) | self.homeless[rows][:, None]
        # a move outweighs any sum of scaled distances, so fewest moves come first
        cost = (cost / scale if scale > 0 else cost) + moves * (len(rows) + 1.0)
        chosen = linear_sum_assignment(cost)[1]
        for twins in _equal_rows(cost):  # equal items: the first token gets the nearest of their codes
            mine = chosen[twins]
            chosen[twins] = mine[np.lexsort((mine, cost[twins[0], mine]))]
        self.codes[rows, -1] = free[chosen]

    def _separate_greedily(self, rows: np.ndarray, free: np.ndarray) -> None:
        """The same for a large group: the nearest holder of each code stays, then the nearest pair comes first."""
        kept = rows[~self.homeless[rows]]
        own = self.codes[kept, -1]
        order = np.lexsort((kept, self._distances_to_own(kept), own))
        stays = kept[order[np.append(True, np.diff(own[order]) != 0)[: len(kept)]]]
        leaving, free = np.setdiff1d(rows, stays), np.setdiff1d(free, self.codes[stays, -1])
        chosen = nearest_first(
            lambda items: self._distances(leaving[items], self.levels - 1)[:, free],
            len(leaving),
            np.ones(len(free), dtype=np.int64),
            len(leaving),
        )
        self.codes[leaving, -1] = free[chosen]


def nearest_first(cost: Callable[[np.ndarray], np.ndarray], count: int, room: np.ndarray, wanted: int) -> np.ndarray:
    """Places items one by one, each time the pair of item and place with the least cost of all.

    Equal costs take the lower item, then the lower place. The matrix of all costs is never held: an item waits with
    its best open place and looks again when that one is full.

    Args:
        cost: item numbers [m] -> [m, P].
        room: int [P], how many more items a place takes; changed in place.
        wanted: how many items are to be placed.

    Returns:
        int64 [count]: the place of each item, -1 for those that were not placed.
    """
    placed = np.full(count, -1, dtype=np.int64)
    waiting: list[tuple[float, int, int]] = []

    def wait(items: np.ndarray) -> None:
        costs = cost(items)
        costs[:, room <= 0] = np.inf
        best = costs.argmin(axis=1)
        least = costs[np.arange(len(items)), best]
        for entry in zip(least.tolist(), items.tolist(), best.tolist(), strict=True):
            heapq.heappush(waiting, entry)

    step = max(1, BATCH_CELLS // len(room))
    for begin in range(0, count, step):
        wait(np.arange(begin, min(begin + step, count)))
    while wanted > 0:
        _, item, place = heapq.heappop(waiting)
        if room[place] <= 0:
            wait(np.array([item]))
            continue
        placed[item] = place
        room[place] -= 1
        wanted -= 1
    return placed


def squared_distances(points: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """[n, N], each by itself and not by a matrix product, so that equal points have equal distances."""
    step = max(1, (1 << 18) // codebook.size)  # what the differences of one block take stays in the cache
    found = np.empty((len(points), len(codebook)))
    for start in range(0, len(points), step):
        difference = points[start : start + step, None] - codebook
        found[start : start + step] = np.einsum("ncd,ncd->nc", difference, difference)
    return found


def _equal_rows(cost: np.ndarray) -> list[np.ndarray]:
    """The numbers of equal rows, ascending, where there are several."""
    found: dict[bytes, list[int]] = {}
    for number, row in enumerate(cost):
        found.setdefault(row.tobytes(), []).append(number)
    return [np.array(rows) for rows in found.values() if len(rows) > 1]
