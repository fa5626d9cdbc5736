"""Metrics of each user from the rank of the held-out item, for errors and paired comparisons."""

from __future__ import annotations

import numpy as np

from recbole_gmc.evaluate.topk import TopKTable


def recall(table: TopKTable, k: int) -> np.ndarray:
    """[n]: 1 where the target is among the first k. With one target this is Hit@k, too."""
    return ((table.rank >= 0) & (table.rank < k)).astype(float)


def ndcg(table: TopKTable, k: int) -> np.ndarray:
    """[n]: 1 / log2(rank + 2) for a 0-based rank below k, else 0.

    Example: ranks 0, 2 and 10 give 1, 1/2 and 0 at k = 10.
    """
    return recall(table, k) / np.log2(np.maximum(table.rank, 0) + 2.0)


def standard_error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
