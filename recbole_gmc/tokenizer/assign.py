"""One ID an item, whatever the codes: who moves where is in ``repair``, TIGER's counter and imports are here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recbole_gmc.errors import TokenizerError
from recbole_gmc.items import ItemIndex
from recbole_gmc.tokenizer.prefixes import Groups, duplicate_rows, prefix_keys
from recbole_gmc.tokenizer.repair import Repair
from recbole_gmc.vectors import Vectors, block_slices

__all__ = ["Assignment", "duplicate_rows", "make_unique", "number_collisions", "repair_codes"]


@dataclass(frozen=True)
class Assignment:
    """``codes`` int32 [items, L], unique inside each domain; ``moved`` bool [items]: whose codes changed."""

    codes: np.ndarray
    moved: np.ndarray


def make_unique(items: ItemIndex, codes: np.ndarray, latents: Vectors, codebooks: np.ndarray) -> Assignment:
    """Makes ``codes`` [items, L] unique inside each domain by the rule of ``repair``.

    Args:
        latents: [items, d], what the codes quantise; only the rows of items that may move are read.
        codebooks: [L, N, d].

    Raises:
        TokenizerError: a domain's items cannot be separated; the codebook size that would do is named.
    """
    result = np.array(codes, dtype=np.int32)
    for domain in items.domains:
        rows = items.rows(domain)
        part = result[rows]  # a view: the repair of a domain is written in place
        if len(duplicate_rows(part)):
            Repair(domain, part, latents, rows.start, codebooks).run()
    return Assignment(result, (result != codes).any(axis=1))


def number_collisions(items: ItemIndex, codes: np.ndarray, codebook_size: int) -> Assignment:
    """TIGER's rule: one more level, which numbers the items of a domain that share their codes [items, L - 1] from 0.

    Raises:
        TokenizerError: more items share their codes than a level has codes.
    """
    number = np.zeros((len(items), 1), dtype=np.int32)
    for domain in items.domains:
        rows = items.rows(domain)
        number[rows, 0] = Groups.of(prefix_keys(codes[rows])).places()
        if number[rows].size and number[rows].max() >= codebook_size:
            raise TokenizerError(
                f"{number[rows].max() + 1} items of domain {domain!r} share their codes, more than codebook_size "
                f"{codebook_size}",
                mend="Train the tokenizer longer, give more code_levels, or set tokenizer_collisions to move",
            )
    return Assignment(np.concatenate([codes, number], axis=1).astype(np.int32), (number > 0).any(axis=1))


def repair_codes(items: ItemIndex, codes: np.ndarray, codebook_size: int, vectors: Vectors | None = None) -> Assignment:
    """The same for codes whose codebooks are unknown (an import).

    Each code is placed at the mean residual of the items that have it; without ``vectors`` [items, D] every free code
    is as good as another. Level after level reads all vectors once, block by block.
    """
    levels = codes.shape[1]
    if vectors is None:
        vectors = np.zeros((len(items), 1), dtype=np.float32)
    width = vectors.shape[1]
    codebooks = np.zeros((levels, codebook_size, width))
    slices = list(block_slices(len(items), width))
    mean = np.zeros(width)
    for rows in slices:
        mean += np.asarray(vectors[rows], dtype=np.float64).sum(axis=0)
    mean /= max(len(items), 1)
    centred = _Centred(vectors, mean)
    for level in range(levels):
        for rows in slices:
            residual = centred[rows]
            for before in range(level):
                residual -= codebooks[before, codes[rows, before]]
            np.add.at(codebooks[level], codes[rows, level], residual)
        counts = np.bincount(codes[:, level], minlength=codebook_size)
        codebooks[level] /= np.maximum(counts, 1)[:, None]
    return make_unique(items, codes, centred, codebooks)


class _Centred:
    """``vectors`` [items, D] minus their mean, in float64."""

    def __init__(self, vectors: Vectors, mean: np.ndarray) -> None:
        self.vectors, self.mean, self.shape = vectors, mean, vectors.shape

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self.vectors[rows], dtype=np.float64) - self.mean
