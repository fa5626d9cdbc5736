"""Whether items with near text have equal codes (paper section 5.4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.report.codes import Codes
from recbole_gmc.tokenizer.kmeans import require_faiss
from recbole_gmc.vectors import block_slices, sample_rows

KS = (1, 2, 5, 10, 20, 50, 100)
MOST_PAIRS = 10**9  # comparisons of two vectors a domain: a few seconds; of a larger catalogue fewer items are asked


@dataclass(frozen=True)
class Similarity:
    """Shares of equal codes in one domain.

    Attributes:
        ks: numbers of neighbours.
        shares: a number of neighbours: the mean over items, their K nearest and the levels.
        chance: the same for two random items of the domain.
        asked: items whose neighbours were looked for.
    """

    ks: tuple[int, ...]
    shares: tuple[float, ...]
    chance: float
    asked: int


def similarities(codes: Codes, embeddings: TextEmbeddings, seed: int, ks: Sequence[int] = KS) -> dict[str, Similarity]:
    """Domain -> similarity; domains of one item are left out.

    Raises:
        DependencyError: no faiss.
    """
    found = {}
    for domain in codes.items.domains:
        part = codes.of_domain(domain)
        kept = tuple(k for k in ks if k < len(part))
        if not kept:
            continue
        asked = sample_rows(len(part), max(1, MOST_PAIRS // len(part)), seed)
        near = nearest(embeddings.for_domain(domain), asked, kept[-1])
        equal = (part[near] == part[asked, None, :]).mean(axis=2).mean(axis=0)
        running = np.cumsum(equal) / np.arange(1, kept[-1] + 1)
        shares = tuple(float(running[k - 1]) for k in kept)
        found[domain] = Similarity(kept, shares, by_chance(part), len(asked))
    return found


def nearest(vectors: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    """int64 [asked, k]: the rows nearest by cosine to each of the rows ``asked``, itself left out, nearest first.

    Args:
        vectors: float32 [n, D], k < n.
    """
    require_faiss()
    import faiss

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    index = faiss.IndexFlatIP(unit.shape[1])
    for rows in block_slices(len(unit), unit.shape[1]):
        index.add(np.ascontiguousarray(unit[rows], np.float32))
    found = index.search(np.ascontiguousarray(unit[asked], np.float32), k + 1)[1]
    # with many equal vectors an item may not be among its own neighbours; then the last one goes
    other = found != asked[:, None]
    other[other.all(axis=1), -1] = False
    return found[other].reshape(len(asked), k)


def by_chance(codes: np.ndarray) -> float:
    """The share of equal codes that two different random items of ``codes`` [n, L] have on average."""
    n = len(codes)
    pairs = [np.bincount(column) for column in codes.T]
    return float(np.mean([(count * (count - 1)).sum() / (n * (n - 1)) for count in pairs]))
