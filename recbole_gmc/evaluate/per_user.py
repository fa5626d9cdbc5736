"""Metrics of each user, for errors and paired comparisons.

They are taken from int [n], the 0-based rank of the held-out item, -1 for a miss.
"""

from __future__ import annotations

import numpy as np


def recall(rank: np.ndarray, k: int) -> np.ndarray:
    """[n]: 1 where the target is among the first k. With one target this is Hit@k, too."""
    return ((rank >= 0) & (rank < k)).astype(float)


def ndcg(rank: np.ndarray, k: int) -> np.ndarray:
    """[n]: 1 / log2(rank + 2) for a 0-based rank below k, else 0.

    Example: ranks 0, 2 and 10 give 1, 1/2 and 0 at k = 10.
    """
    return recall(rank, k) / np.log2(np.maximum(rank, 0) + 2.0)


def standard_error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
