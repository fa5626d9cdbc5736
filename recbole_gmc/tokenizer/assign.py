"""One ID an item: the repair that makes codes unique inside each domain, moving as few items as little as possible.

The rule, domain by domain:

1. A *group* is the items with equal first L-1 codes. Where more than N items share a group, the surplus moves to
   sibling groups (another code at level L-1, equal before it). The nearest holder of each last code stays; of the
   others those leave whose change of level L-1 adds the least squared error, one by one, to groups that have room.
2. Inside a group with equal IDs, all last codes are chosen at once by a minimum-cost assignment: first as many items as
   possible keep their code (so an item that is alone on its code never moves), then the sum of squared distances
   between last residual and last code is least.
3. Ties follow the order of the item tokens, so the order of rows in a file never matters.

More than N^2 items with equal first L-2 codes (more than N where L = 1) cannot be separated this way and are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from recbole_gmc.errors import TokenizerError
from recbole_gmc.items import ItemIndex


@dataclass(frozen=True)
class Assignment:
    """``codes`` int32 [items, L], unique inside each domain; ``moved`` bool [items]: whose codes changed."""

    codes: np.ndarray
    moved: np.ndarray


def duplicate_rows(codes: np.ndarray) -> np.ndarray:
    """Rows whose codes an earlier row of ``codes`` [n, L] already has."""
    first = np.unique(codes, axis=0, return_index=True)[1] if len(codes) else np.zeros(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(codes)), first)


def make_unique(items: ItemIndex, codes: np.ndarray, latents: np.ndarray, codebooks: np.ndarray) -> Assignment:
    """Makes ``codes`` [items, L] unique inside each domain by the rule of this module.

    Args:
        latents: [items, d], what the codes quantise.
        codebooks: [L, N, d].

    Raises:
        TokenizerError: a domain's items cannot be separated; the codebook size that would do is named.
    """
    result = np.array(codes, dtype=np.int32)
    for domain in items.domains:
        rows = items.rows(domain)
        part = result[rows]  # a view: the repair of a domain is written in place
        if len(duplicate_rows(part)):
            _Repair(domain, part, latents[rows], codebooks).run()
    return Assignment(result, (result != codes).any(axis=1))


def number_collisions(items: ItemIndex, codes: np.ndarray, codebook_size: int) -> Assignment:
    """TIGER's rule: one more level, which numbers the items of a domain that share their codes [items, L - 1] from 0.

    Raises:
        TokenizerError: more items share their codes than a level has codes.
    """
    number = np.zeros((len(items), 1), dtype=np.int32)
    for domain in items.domains:
        rows = items.rows(domain)
        for group in _groups(codes[rows]):
            number[rows][group, 0] = np.arange(len(group))
        if number[rows].size and number[rows].max() >= codebook_size:
            raise TokenizerError(
                f"{number[rows].max() + 1} items of domain {domain!r} share their codes, more than codebook_size "
                f"{codebook_size}",
                mend="Train the tokenizer longer, give more code_levels, or set tokenizer_collisions to move",
            )
    return Assignment(np.concatenate([codes, number], axis=1).astype(np.int32), (number > 0).any(axis=1))


def repair_codes(
    items: ItemIndex, codes: np.ndarray, codebook_size: int, vectors: np.ndarray | None = None
) -> Assignment:
    """The same for codes whose codebooks are unknown (an import).

    Each code is placed at the mean residual of the items that have it; without ``vectors`` [items, D] every free code
    is as good as another.
    """
    levels = codes.shape[1]
    latents = np.zeros((len(items), 1)) if vectors is None else np.asarray(vectors, dtype=np.float64)
    codebooks = np.zeros((levels, codebook_size, latents.shape[1]))
    residual = latents - latents.mean(axis=0) if len(latents) else latents
    centred = residual
    for level in range(levels):
        sums, counts = codebooks[level], np.bincount(codes[:, level], minlength=codebook_size)
        np.add.at(sums, codes[:, level], residual)
        sums /= np.maximum(counts, 1)[:, None]
        residual = residual - sums[codes[:, level]]
    return make_unique(items, codes, centred, codebooks)


class _Repair:
    """The repair of one domain; ``codes`` [n, L] is changed in place."""

    def __init__(self, domain: str, codes: np.ndarray, latents: np.ndarray, codebooks: np.ndarray) -> None:
        self.domain, self.codes = domain, codes
        self.latents = np.asarray(latents, dtype=np.float64)
        self.codebooks = np.asarray(codebooks, dtype=np.float64)
        self.levels, self.size = codebooks.shape[:2]
        self.homeless = np.zeros(len(codes), dtype=bool)  # left its group in step 1, so it has no last code to keep

    def run(self) -> None:
        self._refuse_what_cannot_be()
        if self.levels > 1:
            for rows in _groups(self.codes[:, :-2]):
                sizes = np.bincount(self.codes[rows, -2], minlength=self.size)
                if sizes.max() > self.size:
                    self._spread(rows, sizes)
        for rows in _groups(self.codes[:, :-1]):
            if self.homeless[rows].any() or len(np.unique(self.codes[rows, -1])) < len(rows):
                self._separate(rows)

    def _refuse_what_cannot_be(self) -> None:
        free = min(self.levels, 2)  # the levels that the repair may change
        most = max(len(rows) for rows in _groups(self.codes[:, : self.levels - free]))
        if most > self.size**free:
            need = most if free == 1 else math.isqrt(most - 1) + 1
            raise TokenizerError(
                f"{most} items of domain {self.domain!r} share the first {self.levels - free} codes; "
                f"codebooks of {self.size} codes can tell {self.size**free} apart",
                where="codebook_size",
                mend=f"Set codebook_size to {need} or more, or use embeddings that tell the items apart",
            )

    def _distances(self, rows: np.ndarray, level: int) -> np.ndarray:
        """Squared distances [rows, N] between the input residuals of ``level`` and its codes."""
        residual = self.latents[rows].copy()
        for before in range(level):
            residual -= self.codebooks[before, self.codes[rows, before]]
        codebook = self.codebooks[level]
        step = max(1, (1 << 22) // codebook.size)  # bounds the memory of a large group
        starts = range(0, len(rows), step)
        return np.concatenate([((residual[s : s + step, None] - codebook) ** 2).sum(axis=2) for s in starts])

    def _spread(self, rows: np.ndarray, sizes: np.ndarray) -> None:
        """Step 1 for the items ``rows`` with equal first L-2 codes; ``sizes`` [N] counts their groups."""
        for code in np.flatnonzero(sizes > self.size):
            group = rows[self.codes[rows, -2] == code]
            last = self._distances(group, self.levels - 1)[np.arange(len(group)), self.codes[group, -1]]
            order = np.lexsort((group, last, self.codes[group, -1]))
            first = np.append(True, np.diff(self.codes[group[order], -1]) != 0)
            movable = np.sort(group[order[~first]])
            added = self._distances(movable, self.levels - 2)
            added -= added[:, [code]]
            added[:, sizes >= self.size] = np.inf
            for _ in range(sizes[code] - self.size):
                item, target = np.unravel_index(np.argmin(added), added.shape)  # the first minimum: token, then code
                self.codes[movable[item], -2] = target
                self.homeless[movable[item]] = True
                added[item] = np.inf
                sizes[code] -= 1
                sizes[target] += 1
                if sizes[target] == self.size:
                    added[:, target] = np.inf

    def _separate(self, rows: np.ndarray) -> None:
        """Step 2 for the items ``rows`` of one group."""
        cost = self._distances(rows, self.levels - 1)
        scale = cost.max()
        cost = cost / scale if scale > 0 else cost
        moves = np.ones_like(cost)
        moves[np.arange(len(rows)), self.codes[rows, -1]] = self.homeless[rows]
        # a move outweighs any sum of scaled distances, so fewest moves come first
        cost += moves * (len(rows) + 1.0)
        chosen = linear_sum_assignment(cost)[1]
        for twins in _groups(cost):
            if len(twins) > 1:  # equal items: the first token gets the nearest of their codes
                mine = chosen[twins]
                chosen[twins] = mine[np.lexsort((mine, cost[twins[0], mine]))]
        self.codes[rows, -1] = chosen


def _groups(keys: np.ndarray) -> list[np.ndarray]:
    """The row numbers of equal rows of ``keys`` [n, k], ascending inside each group, groups in the order of keys."""
    if not keys.shape[1]:
        return [np.arange(len(keys))]
    which = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(which, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
