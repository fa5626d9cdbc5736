"""Linear layers whose products are made by oneDNN where that was asked for, forward and backward, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """As torch's; with ``onednn`` set, the same numbers up to rounding by another library."""

    onednn = False

    def forward(self, inputs: Tensor) -> Tensor:
        if self.onednn:
            return _OneDnnLinear.apply(inputs, self.weight, self.bias)
        return F.linear(inputs, self.weight, self.bias)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        back = _product(gradient, weight.T) if ctx.needs_input_grad[0] else None
        return back, _product(gradient.T, inputs.T), gradient.sum(dim=0)


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left`` [n, k] times the transpose of ``right`` [m, k]."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
