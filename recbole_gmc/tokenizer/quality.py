"""How good semantic IDs are, as plain numbers, in memory that grows with the codes alone."""

from __future__ import annotations

import math

import numpy as np

from recbole_gmc.items import ItemIndex
from recbole_gmc.tokenizer.prefixes import distinct
from recbole_gmc.vectors import Vectors, blocks


def collision_rates(items: ItemIndex, codes: np.ndarray) -> dict[str, float]:
    """Domain -> 1 - distinct IDs / items, for ``codes`` [items, L] before the repair; an empty domain has 0."""
    parts = {domain: codes[items.rows(domain)] for domain in items.domains}
    return {domain: 1 - distinct(part) / len(part) if len(part) else 0.0 for domain, part in parts.items()}


def weighted(items: ItemIndex, rates: dict[str, float]) -> float:
    """The mean of per-domain ``rates``, weighted by items."""
    counts = {domain: rows.stop - rows.start for domain in items.domains for rows in (items.rows(domain),)}
    return sum(rate * counts[domain] for domain, rate in rates.items()) / max(len(items), 1)


def equal_embeddings(items: ItemIndex, vectors: Vectors) -> dict[str, int]:
    """Domain -> items whose embedding an earlier item of the domain already has: no code can tell them apart.

    Told by a hash of 64 bits a row, so that no vector is kept; one false hit in 10 million items has odds of 3e-6.
    """
    hashes = np.empty(len(items), dtype=np.uint64)
    factors = np.random.default_rng(0).integers(2**64, size=vectors.shape[1], dtype=np.uint64) | np.uint64(1)
    for rows, block in blocks(vectors):
        hashes[rows] = _mixed(np.ascontiguousarray(block).view(np.uint32)) @ factors
    counts = {}
    for domain in items.domains:
        part = hashes[items.rows(domain)]
        counts[domain] = len(part) - len(np.unique(part))
    return counts


def _mixed(bits: np.ndarray) -> np.ndarray:
    """uint64: the bits of float32 spread over 64, as a plain sum of products would let low bits be."""
    wide = bits.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return wide ^ (wide >> np.uint64(29))


def codes_used(codes: np.ndarray) -> list[int]:
    """Distinct codes a level."""
    return [int((np.bincount(column) > 0).sum()) for column in codes.T]


def perplexity(codes: np.ndarray) -> list[float]:
    """exp(entropy) of the codes a level: as many equally frequent codes would be as uncertain."""
    values = []
    for column in codes.T:
        share = np.bincount(column) / len(column)
        share = share[share > 0]
        values.append(math.exp(-float((share * np.log(share)).sum())))
    return values


def domain_purity(items: ItemIndex, codes: np.ndarray) -> list[float]:
    """A level: the mean over its used codes of the largest domain's share of the code's items."""
    purity = []
    for column in codes.T:
        size = int(column.max()) + 1
        table = np.stack([np.bincount(column[items.rows(d)], minlength=size) for d in items.domains], axis=1)
        table = table[table.sum(axis=1) > 0]
        purity.append(float((table.max(axis=1) / table.sum(axis=1)).mean()))
    return purity
