"""What either way of learning semantic IDs hands to the repair and the quality figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from recbole_gmc.vectors import Vectors


@dataclass(frozen=True)
class Learned:
    """Codes before the repair, and what they quantise.

    Attributes:
        codes: int32 [items, L].
        latents: float [items, d], the first level's input; made of the embeddings again for the rows asked for.
        codebooks: float32 [L, N, d].
        reconstruction: squared error over the variance of the embeddings, all items, both in the embeddings' own
            space; ``None`` if unknown.
        epochs: epochs trained (0 without a network).
        history: one entry an evaluation: epoch, loss, its parts, reconstruction, collision_rate, and of each
            level codes_used and perplexity.
    """

    codes: np.ndarray
    latents: Vectors
    codebooks: np.ndarray
    reconstruction: float | None
    epochs: int = 0
    history: list[dict] = field(default_factory=list)
