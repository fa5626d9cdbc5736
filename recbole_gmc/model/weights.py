"""The matrices of one training step: T5's weights with the scales around them folded in, and low-rank adapters.

A norm's scale and a dropout's 1 / (1 - p) are factors of rows or of everything, so they move into the matrix behind or
before them, once a step instead of once a token. The gradients find their way back through the same products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from recbole_gmc.model.seq2seq import output_scale


@dataclass(frozen=True)
class Leaf:
    """A tensor in two forms: ``master`` fp32 collects the gradient, ``data`` has the computing type."""

    master: Tensor
    data: Tensor


@dataclass(frozen=True)
class Matrix:
    """A weight [out, in] and, where an adapter is active, what it adds: ``up @ down``, with dropout before ``down``.

    Attributes:
        weight: out of one or several of T5's matrices, one below the other.
        down: [P, r, in], one of each of the P matrices that have an adapter.
        up: [out, P * r], zero outside its own matrix; with the adapter's scale and that of its dropout.
        p: dropout before ``down``.
    """

    weight: Leaf
    down: Leaf | None = None
    up: Leaf | None = None
    p: float = 0.0

    @property
    def masters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.weight.master, self.down and self.down.master, self.up and self.up.master

    def leaves(self) -> list[Leaf]:
        return [leaf for leaf in (self.weight, self.down, self.up) if leaf is not None]

    def detached(self) -> Matrix:
        leaves = [
            leaf and Leaf(leaf.master.detach().requires_grad_(leaf.master.requires_grad), leaf.data)
            for leaf in (self.weight, self.down, self.up)
        ]
        return Matrix(*leaves, self.p)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Weights:
    """All matrices of a step by name, as ``fold`` gives them."""

    matrices: dict[str, Matrix]

    def __getitem__(self, name: str) -> Matrix:
        return self.matrices[name]

    def detached(self) -> Weights:
        """The same with masters that collect gradients of their own, chunk after chunk."""
        return Weights({name: matrix.detached() for name, matrix in self.matrices.items()})

    def hand_back(self, collected: Weights) -> None:
        """Passes the gradients that ``detached`` weights collected on to T5's parameters."""
        pairs = [
            (own.master, other.master.grad)
            for name, matrix in self.matrices.items()
            for own, other in zip(matrix.leaves(), collected[name].leaves(), strict=True)
            if other.master.grad is not None
        ]
        if pairs:
            torch.autograd.backward(*zip(*pairs, strict=True))


def fold(t5: T5ForConditionalGeneration, scale: float, dtype: torch.dtype) -> Weights:
    """The matrices of this moment.

    Args:
        t5: plain, or with peft's LoRA layers in it.
        scale: 1 / (1 - p) of T5's dropout, 1 where nothing is dropped.
        dtype: computing type.

    Returns:
        ``table`` (embedding), ``memory`` (keys and values for all decoder layers), ``head``, and for every layer n of
        ``encoder.n`` and ``decoder.n``: ``qkv``, ``o``, ``wi`` (both parts below each other if gated), ``wo`` and in
        the decoder ``cross_q``, ``cross_o``.
    """
    folder = _Folder(scale, t5.config.d_model, dtype)
    folded = {"table": folder.matrix([t5.shared], behind=scale)}
    for stack, name in ((t5.encoder, "encoder"), (t5.decoder, "decoder")):
        for number, block in enumerate(stack.block):
            for part, matrix in folder.block(block).items():
                folded[f"{name}.{number}.{part}"] = matrix
    cross = [block.layer[1].EncDecAttention for block in t5.decoder.block]
    pairs = [part for attention in cross for part in (attention.k, attention.v)]
    folded["memory"] = folder.matrix(pairs, t5.encoder.final_layer_norm, before=scale)
    folded["head"] = folder.matrix(
        [t5.lm_head], t5.decoder.final_layer_norm, before=scale, behind=output_scale(t5.config)
    )
    return Weights(folded)


class _Folder:
    def __init__(self, scale: float, width: int, dtype: torch.dtype) -> None:
        self.scale, self.root, self.dtype = scale, width**0.5, dtype

    def block(self, block: nn.Module) -> dict[str, Matrix]:
        own, last = block.layer[0], block.layer[-1]
        attention, dense = own.SelfAttention, last.DenseReluDense
        inner = [dense.wi] if hasattr(dense, "wi") else [dense.wi_0, dense.wi_1]
        twice = {"before": self.scale, "behind": self.scale}
        folded = {
            "qkv": self.matrix([attention.q, attention.k, attention.v], own.layer_norm),
            "o": self.matrix([attention.o], **twice),
            "wi": self.matrix(inner, last.layer_norm),
            "wo": self.matrix([dense.wo], **twice),
        }
        if len(block.layer) == 3:
            cross = block.layer[1]
            folded["cross_q"] = self.matrix([cross.EncDecAttention.q], cross.layer_norm)
            folded["cross_o"] = self.matrix([cross.EncDecAttention.o], **twice)
        return folded

    def matrix(
        self, parts: Sequence[nn.Module], norm: nn.Module | None = None, before: float = 1.0, behind: float = 1.0
    ) -> Matrix:
        """``parts`` below each other, times the factors of what stands before (a norm, a dropout) and behind them."""
        # Rows of length 1 come in where T5 gives them a mean square of 1.
        factor: Tensor | float = before if norm is None else norm.weight * (before * self.root)
        whole = torch.cat([_own(part) for part in parts]) if len(parts) > 1 else _own(parts[0])
        weight = self._leaf(whole * (factor * behind))
        lora = [_Lora.of(part) for part in parts]
        used = [one for one in lora if one is not None]
        if not used:
            return Matrix(weight)
        down = torch.stack([one.down for one in used]) * factor
        ups, column, rank = [], 0, used[0].down.shape[0]
        for part, one in zip(parts, lora, strict=True):
            if one is None:
                ups.append(whole.new_zeros(_own(part).shape[0], rank * len(used)))
            else:
                ups.append(F.pad(one.up, (column, rank * len(used) - column - rank)))
                column += rank
        p = used[0].p
        return Matrix(weight, self._leaf(down), self._leaf(torch.cat(ups) * (behind / (1 - p))), p)

    def _leaf(self, master: Tensor) -> Leaf:
        return Leaf(master, master.detach().to(self.dtype))


@dataclass(frozen=True)
class _Lora:
    """The active adapter of one layer: ``down`` [r, in], ``up`` [out, r] with its scale."""

    down: Tensor
    up: Tensor
    p: float

    @classmethod
    def of(cls, layer: nn.Module) -> _Lora | None:
        if not hasattr(layer, "lora_A") or layer.disable_adapters:
            return None
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        if not active:
            return None
        (name,) = active  # one domain at a time
        dropout = layer.lora_dropout[name]
        p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        return cls(layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name], p)


def _own(layer: nn.Module) -> Tensor:
    """A layer's own weight, under an adapter or not."""
    return getattr(layer, "base_layer", layer).weight
