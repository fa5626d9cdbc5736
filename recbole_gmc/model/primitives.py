"""The parts of the sublayers, forward and backward: dropout, norm, products, the way between tokens and heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_gmc.model.packing import Block
from recbole_gmc.model.weights import Matrix


def cleared(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` with the elements cleared, in place, whose mask is 0 (all other bits of the mask are 1)."""
    if mask is not None:
        x.view(mask.dtype).bitwise_and_(mask)
    return x


def kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """A copy of ``x`` with the elements cleared whose mask is 0."""
    return x if mask is None else (x.view(mask.dtype) & mask).view(x.dtype)


def row_length(x: Tensor, eps: float) -> Tensor:
    """[T, 1]: the root of the sum of squares of each row, with T5's epsilon in it."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return length.square_().add_(x.shape[-1] * eps).sqrt_()


def unit(x: Tensor, length: Tensor) -> Tensor:
    return x * length.reciprocal().to(x.dtype)


def unit_backward(gradient: Tensor, x: Tensor, length: Tensor) -> Tensor:
    """The gradient of ``unit`` through ``row_length``, too."""
    if x.device.type == "cpu":  # one pass; weight normalisation is the same formula
        ones = x.new_ones(len(x), 1)
        return torch.ops.aten._weight_norm_interface_backward(gradient, x, ones, length, 0)[0]
    return unit_backward_anywhere(gradient, x, length)


def unit_backward_anywhere(gradient: Tensor, x: Tensor, length: Tensor) -> Tensor:
    """``unit_backward`` on any device, in several passes."""
    along = (gradient * x).sum(-1, keepdim=True, dtype=length.dtype) / length.square()
    return torch.addcmul(gradient, x, along.to(x.dtype), value=-1).mul_(length.reciprocal().to(x.dtype))


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` to ``stop`` of a [T, d] matrix: ``count`` groups of ``width`` tokens that see each other."""

    start: int
    stop: int
    count: int
    width: int


def heads_first(x: Tensor, span: Span, parts: int, heads: int) -> Tensor:
    """[T, parts * heads * d_kv] to a copy [parts, count * heads, width, d_kv] of one span."""
    rows = x[span.start : span.stop].view(span.count, span.width, parts, heads, -1)
    return rows.permute(2, 0, 3, 1, 4).reshape(parts, span.count * heads, span.width, -1)


def heads_last(x: Tensor, out: Tensor, span: Span, heads: int) -> None:
    """The way back: [parts, count * heads, width, d_kv] into the span of ``out`` [T, parts * heads * d_kv]."""
    parts, _, _, d_kv = x.shape
    rows = out[span.start : span.stop].view(span.count, span.width, parts, heads, d_kv)
    rows.copy_(x.view(parts, span.count, heads, span.width, d_kv).permute(1, 3, 0, 2, 4))


def product(x: Tensor, matrix: Matrix, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``x`` [T, in] times a matrix: [T, out], and what an adapter multiplies last, [T, P * r]."""
    out = x @ matrix.weight.data.t()
    if matrix.down is None or matrix.up is None:
        return out, None
    low = torch.bmm(_copies(x, matrix, mask), matrix.down.data.transpose(1, 2))
    low = low.transpose(0, 1).reshape(len(x), -1)
    return out.addmm_(low, matrix.up.data.t()), low


def product_backward(
    gradient: Tensor, x: Tensor, matrix: Matrix, mask: Tensor | None, low: Tensor | None, wanted: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The gradients of ``x`` and of the matrix' three masters, where ``wanted``."""
    d_x = gradient @ matrix.weight.data
    d_weight = gradient.t() @ x if wanted[0] else None
    if low is None or matrix.down is None or matrix.up is None:
        return d_x, (d_weight, None, None)
    d_up = gradient.t() @ low if wanted[2] else None
    d_low = (gradient @ matrix.up.data).view(len(x), len(matrix.down.data), -1).transpose(0, 1)
    d_down = torch.bmm(d_low.transpose(1, 2), _copies(x, matrix, mask)) if wanted[1] else None
    d_x += cleared(torch.bmm(d_low, matrix.down.data), mask).sum(0)
    return d_x, (d_weight, d_down, d_up)


def _copies(x: Tensor, matrix: Matrix, mask: Tensor | None) -> Tensor:
    """[P, T, in]: each adapter drops elements of its own."""
    return kept(x.expand(len(matrix.down.data), -1, -1), mask)


def attention_backward(d_out: Tensor, parts: Tensor, weights: Tensor, mask: Tensor | None, d_parts: Tensor) -> Tensor:
    """Fills the gradients of query, key and value [3, N, width, d_kv]; returns that of the scores."""
    query, key, value = parts
    d_weights = cleared(torch.bmm(d_out, value.transpose(1, 2)), mask)
    torch.bmm(kept(weights, mask).transpose(1, 2), d_out, out=d_parts[2])
    d_score = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
    torch.bmm(d_score, key, out=d_parts[0])
    torch.bmm(d_score.transpose(1, 2), query, out=d_parts[1])
    return d_score


def gathered(x: Tensor, block: Block, levels: int, heads: int, empty: bool = False) -> Tensor:
    """[N * levels, heads * d_kv] to the queries of each bin, [count * heads, most * levels, d_kv].

    ``empty``: zero where a bin holds fewer sequences; otherwise anything finite stands there.
    """
    rows = x.view(-1, levels * x.shape[1])
    if empty:
        taken = rows.new_zeros(len(block.rows), rows.shape[1])
        taken.index_copy_(0, block.places, rows[block.first : block.first + len(block.places)])
    else:
        taken = rows.index_select(0, block.rows)
    taken = taken.view(block.count, block.most * levels, heads, -1)
    return taken.transpose(1, 2).reshape(block.count * heads, block.most * levels, -1)


def scattered(x: Tensor, out: Tensor, block: Block, levels: int) -> None:
    """The way back of ``gathered``, into the rows of ``out`` that belong to the block."""
    rows = x.view(block.count, -1, block.most * levels, x.shape[-1]).transpose(1, 2).reshape(len(block.rows), -1)
    span = slice(block.first * levels, (block.first + len(block.places)) * levels)
    out[span] = rows.index_select(0, block.places).view(-1, out.shape[1])
