"""Residual vectors on a plane, by t-SNE (paper section 5.4.1)."""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE

from recbole_gmc.tokenizer.residuals import Residuals
from recbole_gmc.vectors import sample_rows

PERPLEXITY = 30
ROUNDS = 500
SMALLEST = 10  # items below which there is nothing to see


def sampled(residuals: Residuals, most: int, seed: int) -> dict[str, np.ndarray]:
    """At most ``most`` items of all domains together, of each domain as many as of any other where it has them."""
    each = most // max(len(residuals), 1)
    found = {domain: part[:, sample_rows(part.shape[1], each, seed)] for domain, part in residuals.items()}
    return {domain: part for domain, part in found.items() if part.shape[1]}


def project(residuals: Residuals, level: int, seed: int) -> dict[str, np.ndarray] | None:
    """t-SNE of the residuals [L, items, d] that enter a level, of all domains together.

    Returns:
        Domain -> float [items, 2]; ``None`` for too few items, or where nothing is left to code.
    """
    vectors = np.concatenate([part[level] for part in residuals.values()] or [np.empty((0, 1), np.float32)])
    if len(vectors) < SMALLEST or not vectors.std() > 0:
        return None
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    method = TSNE(2, perplexity=perplexity, max_iter=ROUNDS, init="pca", random_state=seed)
    made = method.fit_transform(vectors / vectors.std())
    ends = np.cumsum([part.shape[1] for part in residuals.values()])
    return dict(zip(residuals, np.split(made, ends[:-1]), strict=True))
