"""Which items share codes: rows of codes as sortable numbers, and the groups of equal ones, in linear memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST = 2**62


def prefix_keys(codes: np.ndarray) -> np.ndarray:
    """int64 [n]: equal where rows of ``codes`` [n, k] are equal, and ordered as the rows are, level by level."""
    keys, bound = np.zeros(len(codes), dtype=np.int64), 1
    for column in codes.T:
        size = int(column.max()) + 1 if len(column) else 1
        if bound * size > LARGEST:  # so many levels do not fit: number the prefixes that there are
            keys = np.unique(keys, return_inverse=True)[1].reshape(-1)
            bound = len(codes)
        keys *= size
        keys += column
        bound *= size
    return keys


@dataclass(frozen=True)
class Groups:
    """Rows by equal key: group g has the rows ``order[starts[g]:starts[g + 1]]``, ascending.

    Example:
        >>> groups = Groups.of(np.array([7, 3, 7]))
        >>> groups.order.tolist(), groups.starts.tolist(), groups.sizes.tolist()
        ([1, 0, 2], [0, 1, 3], [1, 2])
    """

    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray) -> Groups:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        return cls(order, np.concatenate([[0], starts, [len(keys)]]) if len(keys) else np.zeros(1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.starts)

    def rows(self, group: int) -> np.ndarray:
        return self.order[self.starts[group] : self.starts[group + 1]]

    def places(self) -> np.ndarray:
        """int64 [n]: each row's position in its group, from 0."""
        places = np.empty(len(self.order), dtype=np.int64)
        places[self.order] = np.arange(len(self.order)) - np.repeat(self.starts[:-1], self.sizes)
        return places


def duplicate_rows(codes: np.ndarray) -> np.ndarray:
    """Rows whose codes an earlier row of ``codes`` [n, L] already has, ascending."""
    return np.flatnonzero(Groups.of(prefix_keys(codes)).places() > 0)


def distinct(codes: np.ndarray) -> int:
    """How many different rows ``codes`` [n, L] has."""
    return len(Groups.of(prefix_keys(codes)))
