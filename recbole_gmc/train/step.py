"""One step of an optimiser, which nothing but numbers may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from recbole_gmc.errors import RunError


def update(
    weights: Sequence[nn.Parameter],
    optimiser: Optimizer,
    scheduler: LRScheduler,
    clip: Mapping[str, Any] | None,
    loss: Tensor,
    when: str,
    mend: str,
) -> None:
    """Takes a step with the gradients that are there.

    Args:
        weights: what is trained.
        clip: arguments of torch's ``clip_grad_norm_``.
        loss: that the gradients are of.
        when, mend: where training stands, and what to do, for the error.

    Raises:
        RunError: the loss or a gradient is not a number; no weight has changed then.
    """
    if clip:
        norm = clip_grad_norm_(weights, **clip)
    else:
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    if not torch.isfinite(loss + norm):
        what, value = ("gradient's norm", norm) if torch.isfinite(loss) else ("loss", loss)
        raise RunError(f"the training {what} is {value.item()} in {when}", mend=mend)
    optimiser.step()
    scheduler.step()
