"""k-means by faiss."""

from __future__ import annotations

from logging import WARNING, getLogger
from types import ModuleType

import numpy as np

from recbole_gmc.errors import DependencyError

SAMPLE_ROWS = 65_536  # of a catalogue, from which codebooks start and axes are found; more would change little
ROWS_PER_CODE = 40  # at least, below which k-means of that many codes means little


def require_faiss() -> ModuleType:
    """Returns faiss.

    Raises:
        DependencyError: neither faiss package is installed.
    """
    getLogger("faiss.loader").setLevel(WARNING)  # it tells at level INFO which builds it does not find
    try:
        import faiss
    except ImportError as error:
        raise DependencyError(
            "The tokenizer needs faiss, which is not installed",
            mend='Run pip install "recbole_gmc[cpu]" (faiss-cpu) or pip install "recbole_gmc[gpu]" (faiss-gpu)',
        ) from error
    return faiss


def sample_size(codebook_size: int) -> int:
    """How many items k-means is shown at most: what it holds does not grow with the catalogue."""
    return max(SAMPLE_ROWS, ROWS_PER_CODE * codebook_size)


def distinct_count(points: np.ndarray, scale: float) -> int:
    """How many rows of ``points`` [n, d] differ by more than rounding, at values of about ``scale``."""
    if not len(points) or scale <= 0:
        return min(len(points), 1)
    return len(np.unique(np.round(points / (scale * 1e-5)).astype(np.int64), axis=0))


def fit_codebook(points: np.ndarray, size: int, seed: int, scale: float, iterations: int = 25) -> np.ndarray:
    """A codebook float32 [size, d] whose used codes are k-means centroids of ``points`` [n, d].

    With fewer distinct points than codes, each distinct point becomes a centroid and the other codes lie beside them,
    at a thousandth of ``scale``, so that they are free for later training and for the repair. One thread: the result
    depends on the seed alone.
    """
    faiss = require_faiss()
    points = np.ascontiguousarray(points, dtype=np.float32)
    count = min(size, distinct_count(points, scale))
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        if count == len(points) or count < size:
            centroids = _distinct(points, scale)[:count]
        else:
            model = faiss.Kmeans(
                points.shape[1],
                count,
                niter=iterations,
                seed=seed % (1 << 31),
                min_points_per_centroid=1,
                max_points_per_centroid=max(1024, len(points) // count + 1),
            )
            model.train(points)
            centroids = model.centroids
    finally:
        faiss.omp_set_num_threads(threads)
    rng = np.random.default_rng(seed)
    beside = centroids[rng.integers(len(centroids), size=size - count)]
    noise = rng.standard_normal(beside.shape) * max(scale, 1e-6) * 1e-3
    return np.concatenate([centroids, beside + noise]).astype(np.float32)


def nearest(points: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """int64 [n]: the nearest code of each point, the lower one of equals."""
    squares = (codebook.astype(np.float64) ** 2).sum(axis=1)
    found = np.empty(len(points), dtype=np.int64)
    for start in range(0, len(points), 8192):
        part = points[start : start + 8192].astype(np.float64)
        found[start : start + 8192] = np.argmin(squares - 2 * part @ codebook.T.astype(np.float64), axis=1)
    return found


def _distinct(points: np.ndarray, scale: float) -> np.ndarray:
    if scale <= 0:
        return points[:1]
    rounded = np.round(points / (scale * 1e-5)).astype(np.int64)
    return points[np.sort(np.unique(rounded, axis=0, return_index=True)[1])]
