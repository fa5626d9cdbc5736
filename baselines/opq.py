"""Optimised product quantisation of text vectors by faiss: the discrete codes of VQRec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from recbole_gmc.cache import Cache
from recbole_gmc.errors import TokenizerError
from recbole_gmc.files import hash_of
from recbole_gmc.tokenizer.kmeans import require_faiss

KIND = "opq"

logger = getLogger("recbole_gmc.baselines")


@dataclass(frozen=True)
class Codes:
    """``codes`` int64 [items, digits], each below 2 ** ``bits``; the quantiser saw ``seen`` items."""

    codes: np.ndarray
    bits: int
    seen: int

    @property
    def facts(self) -> dict[str, Any]:
        used = [len(np.unique(column)) for column in self.codes.T]
        distinct = len(np.unique(self.codes, axis=0))
        return {"bits": self.bits, "trained_on": self.seen, "codes_used": used, "distinct_items": distinct}


def encode(vectors: np.ndarray, seen: np.ndarray, digits: int, bits: int, cache_dir: str | Path, what: str) -> Codes:
    """Codes of all vectors from a quantiser trained on some of them; kept in the cache.

    The index is faiss' ``OPQ<digits>,IVF1,PQ<digits>x<bits>`` with inner product, as in the published code. Fewer
    training vectors than 2 ** ``bits`` lower the bits, which is said aloud. Zeros fill D up to a multiple of
    ``digits``: they change no inner product, and the rotation spreads what is there.

    Args:
        vectors: float32 [items, D].
        seen: bool [items], the vectors to train on.
        what: names the items in the log.

    Raises:
        DependencyError: no faiss.
        TokenizerError: fewer than two training vectors.
    """
    faiss = require_faiss()
    vectors = np.pad(np.asarray(vectors, np.float32), ((0, 0), (0, -vectors.shape[1] % digits)))
    count = int(seen.sum())
    if count < 2:
        raise TokenizerError(f"{count} item of {what} occurs in training", mend="Give it more interactions")
    fitting = min(bits, count.bit_length() - 1)
    if fitting < bits:
        logger.warning(f"{what}: {count} items of training allow {2**fitting} codes a digit, not {2**bits}")
    cache = Cache(cache_dir)
    key = hash_of(KIND, faiss.__version__, vectors, seen, digits, fitting)
    folder = cache.get(KIND, key)
    if folder is None:
        with _one_thread(faiss):
            codes = _fit(faiss, vectors, seen, digits, fitting)
        with cache.put(KIND, key) as work:
            np.save(work / "codes.npy", codes, allow_pickle=False)
        folder = cache.get(KIND, key)
    else:
        logger.info(f"{what}: codes reused from {folder}")
        codes = np.load(folder / "codes.npy", allow_pickle=False)
    return Codes(codes.astype(np.int64), fitting, count)


def _fit(faiss: Any, vectors: np.ndarray, seen: np.ndarray, digits: int, bits: int) -> np.ndarray:
    dim = vectors.shape[1]
    index = faiss.index_factory(dim, f"OPQ{digits},IVF1,PQ{digits}x{bits}", faiss.METRIC_INNER_PRODUCT)
    # faiss prints a warning for every k-means that has fewer than 39 points a centroid: it was said once above.
    rotation, lists = faiss.downcast_VectorTransform(index.chain.at(0)), faiss.downcast_index(index.index)
    inner = faiss.ProductQuantizer(dim, digits, bits)
    inner.cp.min_points_per_centroid = lists.pq.cp.min_points_per_centroid = lists.cp.min_points_per_centroid = 1
    rotation.pq = inner
    points = vectors[seen]
    if len(points) < dim:  # faiss then writes past its buffers and the process dies: the same rows again, up to dim
        points = np.resize(points, (dim, dim))
    index.train(points)
    rotation.pq = None
    packed = index.sa_encode(vectors)
    return faiss.unpack_bitstrings(packed, digits, bits).astype(np.int16)


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    """Sums in another order would give other codes on another machine."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
