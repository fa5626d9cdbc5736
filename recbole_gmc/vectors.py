"""Float vectors read block by block, wherever they lie: in memory, in files, or made when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

BLOCK_BYTES = 1 << 24  # of a block of float32 rows: what one pass over vectors holds of them at a time


class Vectors(Protocol):
    """Vectors [n, D]: numpy arrays are such, and what reads or makes only the rows asked for.

    ``vectors[rows]`` takes a slice or an array of row numbers and gives floats [rows, D].
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


def block_rows(width: int) -> int:
    """How many rows of ``width`` dimensions make a block; at least one."""
    return max(1, BLOCK_BYTES // (4 * width))


def block_slices(count: int, width: int) -> Iterator[slice]:
    """The rows 0 to ``count`` - 1 as slices of one block each."""
    step = block_rows(width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def blocks(vectors: Vectors) -> Iterator[tuple[slice, np.ndarray]]:
    """All rows in order: which, and the rows as float32."""
    for rows in block_slices(len(vectors), vectors.shape[1]):
        yield rows, np.asarray(vectors[rows], dtype=np.float32)


def row_parts(rows: np.ndarray, width: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Row numbers in pieces of one block each: where in ``rows`` they stand, and the numbers."""
    for place in block_slices(len(rows), width):
        yield place, rows[place]


def as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """Row numbers that follow each other as a slice, which is read faster; others as they are."""
    if len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def content(vectors: Vectors) -> Iterator[bytes]:
    """What ``files.hash_of`` reads of a float32 array [n, D], block by block: equal vectors have equal hashes."""
    yield f"{np.dtype(np.float32).str}{tuple(vectors.shape)}".encode()
    for _, block in blocks(vectors):
        yield block.tobytes()


def sample_rows(count: int, most: int, seed: int) -> np.ndarray:
    """int64: all row numbers below ``count``, or ``most`` different ones drawn evenly; ascending."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size=most, replace=False, shuffle=False))
