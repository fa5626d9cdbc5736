"""The sublayers of a T5 block, forward and backward by hand: norm, product, dropout and residual in few passes.

Every matrix here already holds the scales of the norm before it and of the dropout before and behind it, so a norm
only divides by the length of its row, and dropout only clears elements: an AND with a mask of zeros and ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_gmc.model.primitives import (
    attention_backward,
    cleared,
    gathered,
    heads_first,
    heads_last,
    kept,
    product,
    product_backward,
    row_length,
    scattered,
    unit,
    unit_backward,
)


@dataclass(frozen=True)
class Drops:
    """The masks of a sublayer; ``None`` where nothing is dropped.

    Attributes:
        inner: of the attention weights a span, or of the dense layer's inner state.
        outer: of what the sublayer adds to its input.
        before: of the adapter before the first product, and before the last.
    """

    inner: list[Tensor | None]
    outer: Tensor | None
    before: tuple[Tensor | None, Tensor | None] = (None, None)


class SelfAttention(torch.autograd.Function):
    """x + dropout(attention(norm(x))) for tokens [T, d], over spans of groups.

    After ``eps`` come the masters of ``qkv`` and ``o``, then [1, heads, width, width] of relative positions a span:
    autograd brings them their gradients. ``scores`` hold the latter with the mask added, [count * heads, width, width].
    """

    @staticmethod
    def forward(ctx, x, qkv, o, spans, scores, drops, heads, eps, *masters) -> Tensor:
        length = row_length(x, eps)
        normed = unit(x, length)
        joined, low = product(normed, qkv, drops.before[0])
        mixed = joined.new_empty(len(x), joined.shape[1] // 3)
        saved = []
        for span, score, mask in zip(spans, scores, drops.inner, strict=True):
            parts = heads_first(joined, span, 3, heads)
            weights = torch.baddbmm(score, parts[0], parts[1].transpose(1, 2)).softmax(-1)
            heads_last(torch.bmm(kept(weights, mask), parts[2])[None], mixed, span, heads)
            saved += [parts, weights]
        out, last = product(mixed, o, drops.before[1])
        ctx.save_for_backward(x, length, normed, mixed, low, last, *saved)
        ctx.qkv, ctx.o, ctx.spans, ctx.drops, ctx.heads = qkv, o, spans, drops, heads
        return cleared(out, drops.outer).add_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, length, normed, mixed, low, last, *saved = ctx.saved_tensors
        wanted, drops = ctx.needs_input_grad[8:], ctx.drops
        arriving = kept(gradient, drops.outer)
        d_mixed, d_o = product_backward(arriving, mixed, ctx.o, drops.before[1], last, wanted[3:6])
        d_joined = d_mixed.new_empty(len(x), 3 * d_mixed.shape[1])
        d_bias: list[Tensor | None] = []
        for number, (span, mask) in enumerate(zip(ctx.spans, drops.inner, strict=True)):
            parts, weights = saved[2 * number], saved[2 * number + 1]
            (d_out,) = heads_first(d_mixed, span, 1, ctx.heads)
            d_parts = torch.empty_like(parts)
            d_score = attention_backward(d_out, parts, weights, mask, d_parts)
            heads_last(d_parts, d_joined, span, ctx.heads)
            shape = (span.count, ctx.heads, span.width, span.width)
            d_bias.append(d_score.view(shape).sum(0, keepdim=True) if wanted[6 + number] else None)
        d_normed, d_qkv = product_backward(d_joined, normed, ctx.qkv, drops.before[0], low, wanted[:3])
        d_x = unit_backward(d_normed, x, length).add_(gradient)
        return d_x, *[None] * 7, *d_qkv, *d_o, *d_bias


class FeedForward(torch.autograd.Function):
    """x + dropout(wo(dropout(act(wi(norm(x)))))) for tokens [T, d]; after ``eps`` the masters of ``wi`` and ``wo``.

    ``gated``: the first half of ``wi`` goes through gelu and multiplies the second; otherwise ``act`` is relu.
    """

    @staticmethod
    def forward(ctx, x, wi, wo, gated, drops, eps, *masters) -> Tensor:
        length = row_length(x, eps)
        normed = unit(x, length)
        joined, low = product(normed, wi, drops.before[0])
        if gated:
            gate, linear = joined.chunk(2, -1)
            inner = F.gelu(gate, approximate="tanh").mul_(linear)
        else:
            inner = joined.relu_()
        inner = cleared(inner, drops.inner[0])
        out, last = product(inner, wo, drops.before[1])
        ctx.save_for_backward(x, length, normed, joined if gated else None, inner, low, last)
        ctx.wi, ctx.wo, ctx.drops = wi, wo, drops
        return cleared(out, drops.outer).add_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, length, normed, joined, inner, low, last = ctx.saved_tensors
        wanted, drops = ctx.needs_input_grad[6:], ctx.drops
        arriving = kept(gradient, drops.outer)
        d_inner, d_wo = product_backward(arriving, inner, ctx.wo, drops.before[1], last, wanted[3:])
        if joined is None:  # what relu or dropout cleared is 0, and nothing else is
            d_joined = torch.ops.aten.threshold_backward(d_inner, inner, 0)
        else:
            gate, linear = joined.chunk(2, -1)
            cleared(d_inner, drops.inner[0])
            d_gate = torch.ops.aten.gelu_backward(d_inner * linear, gate, approximate="tanh")
            d_joined = torch.cat([d_gate, d_inner * F.gelu(gate, approximate="tanh")], -1)
        d_normed, d_wi = product_backward(d_joined, normed, ctx.wi, drops.before[0], low, wanted[:3])
        d_x = unit_backward(d_normed, x, length).add_(gradient)
        return d_x, *[None] * 5, *d_wi, *d_wo


class Memory(torch.autograd.Function):
    """Keys and values of all decoder layers from the encoder's last state, in one product; its masters come last.

    Gives [2, count * heads, width, d_kv] a layer and span, layer by layer.
    """

    @staticmethod
    def forward(ctx, x, matrix, spans, drop, before, heads, layers, eps, *masters) -> tuple[Tensor, ...]:
        length = row_length(x, eps)
        normed = cleared(unit(x, length), drop)
        joined, low = product(normed, matrix, before)
        ctx.save_for_backward(x, length, normed, low)
        ctx.matrix, ctx.spans, ctx.drop, ctx.before, ctx.heads = matrix, spans, drop, before, heads
        parts = [heads_first(joined, span, 2 * layers, heads) for span in spans]
        return tuple(part[2 * layer : 2 * layer + 2] for layer in range(layers) for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        x, length, normed, low = ctx.saved_tensors
        d_joined = x.new_empty(len(x), len(ctx.matrix.weight.data))
        for number, span in enumerate(ctx.spans):
            heads_last(torch.cat(gradients[number :: len(ctx.spans)]), d_joined, span, ctx.heads)
        wanted = ctx.needs_input_grad[8:]
        d_normed, d_matrix = product_backward(d_joined, normed, ctx.matrix, ctx.before, low, wanted)
        return unit_backward(cleared(d_normed, ctx.drop), x, length), *[None] * 7, *d_matrix


class CrossAttention(torch.autograd.Function):
    """x + dropout(attention(norm(x), memory)) for decoder tokens [N * levels, d].

    After ``eps`` come the masters of ``q`` and ``o``, then keys and values [2, count * heads, width, d_kv] a block.
    """

    @staticmethod
    def forward(ctx, x, q, o, blocks, scores, drops, heads, levels, eps, *rest) -> Tensor:
        length = row_length(x, eps)
        normed = unit(x, length)
        asked, low = product(normed, q, drops.before[0])
        mixed = torch.zeros_like(asked)
        saved = []
        for block, score, mask, pair in zip(blocks, scores, drops.inner, rest[6:], strict=True):
            query = gathered(asked, block, levels, heads)
            weights = torch.baddbmm(score, query, pair[0].transpose(1, 2)).softmax(-1)
            scattered(torch.bmm(kept(weights, mask), pair[1]), mixed, block, levels)
            saved += [query, weights, pair]
        out, last = product(mixed, o, drops.before[1])
        ctx.save_for_backward(x, length, normed, mixed, low, last, *saved)
        ctx.q, ctx.o, ctx.blocks, ctx.drops, ctx.heads, ctx.levels = q, o, blocks, drops, heads, levels
        return cleared(out, drops.outer).add_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, length, normed, mixed, low, last, *saved = ctx.saved_tensors
        wanted, drops = ctx.needs_input_grad[9:], ctx.drops
        arriving = kept(gradient, drops.outer)
        d_mixed, d_o = product_backward(arriving, mixed, ctx.o, drops.before[1], last, wanted[3:6])
        d_asked = torch.zeros_like(d_mixed)
        d_memory = []
        for number, (block, mask) in enumerate(zip(ctx.blocks, drops.inner, strict=True)):
            query, weights, (key, value) = saved[3 * number : 3 * number + 3]
            d_out = gathered(d_mixed, block, ctx.levels, ctx.heads, empty=True)
            d_key, d_value = d_pair = torch.empty_like(saved[3 * number + 2])
            d_query = torch.empty_like(query)
            attention_backward(d_out, (query, key, value), weights, mask, (d_query, d_key, d_value))
            scattered(d_query, d_asked, block, ctx.levels)
            d_memory.append(d_pair)
        d_normed, d_q = product_backward(d_asked, normed, ctx.q, drops.before[0], low, wanted[:3])
        d_x = unit_backward(d_normed, x, length).add_(gradient)
        return d_x, *[None] * 8, *d_q, *d_o, *d_memory


class Head(torch.autograd.Function):
    """Summed cross-entropy of the labels [n, L] from decoder states [T, d], of which the first n * L count.

    ``weigh`` says from the labels' log-probabilities [n, L] how often each counts; ``None`` is once.
    """

    @staticmethod
    def forward(ctx, x, matrix, labels, drop, eps, weigh, *masters) -> Tensor:
        length = row_length(x, eps)
        normed = cleared(unit(x, length), drop)
        logits, _ = product(normed[: labels.numel()], matrix, None)
        log_prob = logits.log_softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))
        found = log_prob.gather(1, labels.view(-1, 1))
        times = None if weigh is None else weigh(found.view(labels.shape)).view(-1, 1)
        ctx.save_for_backward(x, length, normed, labels.flatten(), log_prob, times)
        ctx.matrix, ctx.drop = matrix, drop
        return (found if times is None else found * times).sum().neg_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, length, normed, labels, log_prob, times = ctx.saved_tensors
        d_logits = log_prob.exp()
        d_logits[torch.arange(len(labels), device=labels.device), labels] -= 1
        d_logits = d_logits.mul_(gradient if times is None else gradient * times).to(x.dtype)
        seen = normed[: len(labels)]
        d_seen, d_head = product_backward(d_logits, seen, ctx.matrix, None, None, ctx.needs_input_grad[6:])
        d_normed = F.pad(d_seen, (0, 0, 0, len(x) - len(labels)))
        return unit_backward(cleared(d_normed, ctx.drop), x, length), *[None] * 5, *d_head


class Embedding(torch.autograd.Function):
    """dropout(table[tokens]); the masters come last, and their gradient is summed in their own precision."""

    @staticmethod
    def forward(ctx, table, tokens, drop, *masters) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.table, ctx.drop = table, drop
        return cleared(table.weight.data.index_select(0, tokens), drop)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        (tokens,) = ctx.saved_tensors
        if not ctx.needs_input_grad[3]:
            return (None,) * 6
        master = ctx.table.weight.master
        arriving = kept(gradient, ctx.drop).to(master.dtype)
        return None, None, None, torch.zeros_like(master).index_add_(0, tokens, arriving), None, None
