"""Dropout whose random numbers are cheap on the CPU.

torch draws one Bernoulli variable an element, 8 ns each on the CPU where this was measured, a sixth of a training
step. Sixteen random bits an element decide as well, at a third of the time: p is rounded to a multiple of 1/65536 and
the scale is exact for the rounded p.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

STEPS = 1 << 16


class Dropout(nn.Dropout):
    """``nn.Dropout`` with 16 random bits an element on the CPU, drawn from torch's global generator."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return input
        if input.device.type != "cpu" or self.p >= 1:
            return F.dropout(input, self.p)
        return _Drop.apply(input, round(self.p * STEPS))

    @staticmethod
    def put_into(module: nn.Module) -> None:
        """Replaces every plain ``nn.Dropout`` inside ``module``."""
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Dropout:
                    setattr(parent, name, Dropout(child.p).train(child.training))


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, dropped: int) -> torch.Tensor:
        """Drops ``dropped`` of 65,536 elements in the mean."""
        count = input.numel()
        bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = (bits[:count] >= dropped - STEPS // 2).view(input.shape)
        mask = keep.to(input.dtype).mul_(STEPS / (STEPS - dropped))
        ctx.save_for_backward(mask)
        return input * mask

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradient * mask, None
