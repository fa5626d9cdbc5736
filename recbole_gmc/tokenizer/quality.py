"""How good semantic IDs are, as plain numbers."""

from __future__ import annotations

import math

import numpy as np

from recbole_gmc.items import ItemIndex


def collision_rates(items: ItemIndex, codes: np.ndarray) -> dict[str, float]:
    """Domain -> 1 - distinct IDs / items, for ``codes`` [items, L] before the repair; an empty domain has 0."""
    rates = {}
    for domain in items.domains:
        part = codes[items.rows(domain)]
        rates[domain] = 1 - len(np.unique(part, axis=0)) / len(part) if len(part) else 0.0
    return rates


def weighted(items: ItemIndex, rates: dict[str, float]) -> float:
    """The mean of per-domain ``rates``, weighted by items."""
    return sum(rate * len(items.tokens[domain]) for domain, rate in rates.items()) / max(len(items), 1)


def equal_embeddings(items: ItemIndex, vectors: np.ndarray) -> dict[str, int]:
    """Domain -> items whose embedding an earlier item of the domain already has: no code can tell them apart."""
    counts = {}
    for domain in items.domains:
        part = np.ascontiguousarray(vectors[items.rows(domain)])
        counts[domain] = len(part) - len({row.tobytes() for row in part})
    return counts


def codes_used(codes: np.ndarray) -> list[int]:
    """Distinct codes a level."""
    return [len(np.unique(column)) for column in codes.T]


def perplexity(codes: np.ndarray) -> list[float]:
    """exp(entropy) of the codes a level: as many equally frequent codes would be as uncertain."""
    values = []
    for column in codes.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        values.append(math.exp(-float((share * np.log(share)).sum())))
    return values


def domain_purity(items: ItemIndex, codes: np.ndarray) -> list[float]:
    """A level: the mean over its used codes of the largest domain's share of the code's items."""
    purity = []
    for column in codes.T:
        table = np.zeros((int(column.max()) + 1, len(items.domains)))
        np.add.at(table, (column, items.domain_of_row), 1)
        table = table[table.sum(axis=1) > 0]
        purity.append(float((table.max(axis=1) / table.sum(axis=1)).mean()))
    return purity
