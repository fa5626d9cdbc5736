"""What the item-wise decoder learns from: codes and items."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def code_log_probs(logits: Tensor, codes: Tensor, allowed: Tensor | None = None) -> Tensor:
    """[T, L]: each code's log-probability given those before it; their sum is that of the item.

    Args:
        logits: [T, L, N], each level's after the codes before it.
        codes: int64 [T, L].
        allowed: bool [T, L, N], the codes that have a share in the probability; all by default.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return -F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape)


def dense_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[T]: cross-entropy over all items of a domain, from logits [T, n] and target int64 [T]."""
    return F.cross_entropy(logits.float(), target, reduction="none")
