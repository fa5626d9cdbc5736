"""Embeddings that stay on disk: rows are read when asked for, and the pages read are given back."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from recbole_gmc.errors import EmbeddingError
from recbole_gmc.vectors import Vectors

RESIDENT_BYTES = 1 << 26  # of a file's pages that may stay mapped before they are given back


class MappedFile:
    """An array [rows, D] in a ``.npy`` file, memory-mapped read-only.

    The pages that a mapping has touched count as this process's memory until the system wants them back. So those of a
    larger file are given back after every ``RESIDENT_BYTES``, and its single rows are not read by the mapping at all,
    as Linux maps up to 2 MiB around each. What is read again mostly comes from the system's cache.

    Raises:
        ValueError, OSError, EOFError: not a readable ``.npy`` file of numbers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._before = _state(self.path)
        self.table = np.load(self.path, mmap_mode="r", allow_pickle=False)
        self._touched = 0

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 [rows, D], a copy; a number past float32's range becomes infinite.

        Raises:
            EmbeddingError: the file has become shorter.
        """
        table = self.table
        with np.errstate(over="ignore"):
            if table.nbytes <= RESIDENT_BYTES:
                return np.array(table[rows], dtype=np.float32)
            if isinstance(rows, slice):
                return self._block(rows)
            if table.flags.c_contiguous and hasattr(os, "preadv"):
                return self._single(rows)
            return np.concatenate([self._block(slice(0, 0)), *(self._block(slice(row, row + 1)) for row in rows)])

    def _block(self, rows: slice) -> np.ndarray:
        """Rows that follow each other, through the mapping."""
        start, stop, _ = rows.indices(len(self.table))
        found = np.empty((max(0, stop - start), self.table.shape[1]), dtype=np.float32)
        size = self.table.itemsize * self.table.shape[1]
        most = max(1, RESIDENT_BYTES // size)
        for low in range(start, stop, most):
            high = min(low + most, stop)
            found[low - start : high - start] = self.table[low:high]
            self._touched += (high - low) * size
            if self._touched >= RESIDENT_BYTES:
                self._give_back()
        return found

    def _single(self, rows: np.ndarray) -> np.ndarray:
        """Rows from anywhere, each by a call of its own."""
        table = self.table
        found = np.empty((len(rows), table.shape[1]), dtype=np.float32)
        row = np.empty(table.shape[1], dtype=table.dtype)
        file = os.open(self.path, os.O_RDONLY)
        try:
            for number, place in enumerate(rows.tolist()):
                if os.preadv(file, [row], table.offset + place * row.nbytes) != row.nbytes:
                    raise self._changed()
                found[number] = row
        finally:
            os.close(file)
        return found

    def _give_back(self) -> None:
        pages = self.table.base
        if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)
        self._touched = 0

    def refuse_change(self) -> None:
        """Raises ``EmbeddingError`` if the file is not the one that was opened."""
        if _state(self.path) != self._before:
            raise self._changed()

    def _changed(self) -> EmbeddingError:
        mend = "Start again, and leave the file alone while a run reads it"
        return EmbeddingError("the file was changed while it was read", str(self.path), mend)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class LazyVectors:
    """float32 [n, D] of which only the rows asked for are ever in memory; ``numpy.asarray`` makes an array of all.

    Args:
        shape: n, D.
        read: a slice without steps or row numbers from 0 -> floats [rows, D].
        files: what the rows come from.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(
        self,
        shape: tuple[int, int],
        read: Callable[[slice | np.ndarray], np.ndarray],
        files: Sequence[MappedFile] = (),
    ) -> None:
        self.shape, self._read, self.files = shape, read, tuple(files)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray | int) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._read(slice(start, max(start, stop)))
            return self._read(np.arange(start, stop, step))
        wanted = np.arange(len(self))[rows] if np.ndim(rows) == 0 else np.asarray(rows)
        if np.ndim(wanted) == 0:
            return self._read(wanted.reshape(1))[0]
        return self._read(np.flatnonzero(wanted) if wanted.dtype == bool else wanted)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def refuse_change(self) -> None:
        """Raises ``EmbeddingError`` if a file was changed since it was opened."""
        for file in self.files:
            file.refuse_change()

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> LazyVectors:
        """The same with ``change`` done to every block of rows that is read."""
        return LazyVectors(self.shape, lambda rows: change(self._read(rows)), self.files)


class _Stacked:
    """The rows of several files one below the other; see ``stacked``."""

    def __init__(self, parts: Sequence[tuple[MappedFile, np.ndarray | None]]) -> None:
        self.parts = parts
        self.counts = [len(file.table) if places is None else len(places) for file, places in parts]
        self.ends = np.cumsum(self.counts)
        self.width = parts[0][0].table.shape[1]

    def __call__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            pieces = []
            for number, end in enumerate(self.ends):
                begin = end - self.counts[number]
                low, high = max(rows.start, begin), min(rows.stop, end)
                if low < high:
                    pieces.append(self._of(number, slice(low - begin, high - begin)))
            if len(pieces) == 1:
                return pieces[0]
            return np.concatenate([np.empty((0, self.width), dtype=np.float32), *pieces])
        found = np.empty((len(rows), self.width), dtype=np.float32)
        owner = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(owner):
            mine = owner == number
            found[mine] = self._of(number, rows[mine] - (self.ends[number] - self.counts[number]))
        return found

    def _of(self, number: int, rows: slice | np.ndarray) -> np.ndarray:
        file, places = self.parts[number]
        return file[rows if places is None else places[rows]]


def stacked(parts: Sequence[tuple[MappedFile, np.ndarray | None]]) -> LazyVectors:
    """The rows of several files one below the other.

    Args:
        parts: files of one D, each with the positions [rows] that its rows take in the file; ``None`` is all in order.
    """
    read = _Stacked(parts)
    return LazyVectors((sum(read.counts), read.width), read, [file for file, _ in parts])


def lazily(vectors: Vectors, change: Callable[[np.ndarray], np.ndarray]) -> LazyVectors:
    """``vectors`` with ``change`` done to every block of rows that is read."""
    if isinstance(vectors, LazyVectors):
        return vectors.map(change)
    count, width = vectors.shape
    return LazyVectors((count, width), lambda rows: change(np.asarray(vectors[rows])))
