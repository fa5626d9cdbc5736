"""T5's training forward over packed sequences; the parameters stay those of transformers' module.

The numbers are those of transformers' T5. What differs is the work: short histories share a row (``packing``), query,
key and value are one product, the keys and values for all decoder layers are one product, the scales of norms and
dropouts are folded into the matrices once a step (``weights``), and gradients are written by hand (``sublayers``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from recbole_gmc.model import sublayers
from recbole_gmc.model.masks import DropoutMasks
from recbole_gmc.model.packing import LANES, Block, Chunk, barrier, pack, pad_rows
from recbole_gmc.model.primitives import Span
from recbole_gmc.model.sublayers import Drops
from recbole_gmc.model.vocabulary import PAD
from recbole_gmc.model.weights import Matrix, Weights, fold


class PackedT5:
    """The training forward of one T5.

    Args:
        t5: owner of the parameters, plain or with one active LoRA adapter; its mode (``train`` or ``eval``) decides
            about dropout.
        dtype: of products and activations, fp32 or bf16; the weights and their gradients stay as they are.
        weigh: from the labels' log-probabilities [n, L] to how often each counts in the loss [n, L]; a matter of each
            row alone. ``None``: once.

    Example:
        >>> network = PackedT5(t5, torch.bfloat16)                              # doctest: +SKIP
        >>> network.backward(input_ids, sizes, labels, chunk_tokens=16_384)     # doctest: +SKIP
    """

    def __init__(
        self,
        t5: T5ForConditionalGeneration,
        dtype: torch.dtype = torch.float32,
        weigh: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.t5, self.config, self.dtype, self.weigh = t5, t5.config, dtype, weigh
        self.eps, self.heads = t5.config.layer_norm_epsilon, t5.config.num_heads
        self._masks: dict[float, DropoutMasks] = {}
        self._seed = 0

    def loss(self, input_ids: Tensor, sizes: Tensor, labels: Tensor) -> Tensor:
        """Equation 8 with its graph: the mean over B x L of the negative log-probability of the labels.

        Args:
            input_ids: int64 [B, S], histories as ``encode_histories`` gives them.
            sizes: int64 [B], the first tokens of each row that count, its eos included.
            labels: int64 [B, L].
        """
        weights = self._weights()
        parts = [self._chunk_loss(weights, chunk, labels) for chunk in self._chunks(input_ids, sizes, None)]
        return torch.stack(parts).sum() / labels.numel()

    def backward(self, input_ids: Tensor, sizes: Tensor, labels: Tensor, most_tokens: int | None = None) -> Tensor:
        """Adds the gradient of ``loss`` to the parameters, in chunks of at most ``most_tokens`` encoder tokens.

        Returns:
            The loss, without a graph. Chunks change memory and which masks dropout draws, nothing else.
        """
        weights = self._weights()
        collecting = weights.detached()
        total = torch.zeros((), device=labels.device)
        for chunk in self._chunks(input_ids, sizes, most_tokens):
            loss = self._chunk_loss(collecting, chunk, labels) / labels.numel()
            loss.backward()
            total += loss.detach()
        weights.hand_back(collecting)
        return total

    # ---- dropout ---------------------------------------------------------------------------------------------------

    @property
    def _p(self) -> float:
        return self.config.dropout_rate if self.t5.training else 0.0

    def _weights(self) -> Weights:
        """Begins a batch: new masks, the matrices of this moment."""
        if self.t5.training:  # one number a batch, so that a resumed run goes on with the same masks
            self._seed = int(torch.randint(1 << 62, ()))
            for masks in self._masks.values():
                masks.renew(self._seed)
        return fold(self.t5, 1 / (1 - self._p), self.dtype)

    def _mask(self, p: float, *shape: int) -> Tensor | None:
        if not p:
            return None
        if p not in self._masks:
            self._masks[p] = DropoutMasks(p, self.dtype, self.t5.shared.weight.device)
            self._masks[p].renew(self._seed)
        return self._masks[p].take(*shape)

    def _before(self, x: Tensor, matrix: Matrix) -> Tensor | None:
        """The masks before the adapters of a matrix."""
        if matrix.down is None:
            return None
        return self._mask(matrix.p, len(matrix.down.data), len(x), matrix.weight.data.shape[1])

    def _drops(self, x: Tensor, inner: list[torch.Size], first: Matrix, last: Matrix) -> Drops:
        before = self._before(x, first), self._before(x, last)
        return Drops([self._mask(self._p, *shape) for shape in inner], self._mask(self._p, *x.shape), before)

    # ---- a chunk ---------------------------------------------------------------------------------------------------

    def _chunks(self, input_ids: Tensor, sizes: Tensor, most_tokens: int | None) -> list[Chunk]:
        return [Chunk.of(bins, input_ids, sizes, PAD) for bins in pack(sizes.tolist(), most_tokens)]

    def _chunk_loss(self, weights: Weights, chunk: Chunk, labels: Tensor) -> Tensor:
        """The summed negative log-probability of the labels int64 [B, L] of the chunk's rows."""
        return self._decode(weights, chunk, labels[chunk.order], self._encode(weights, chunk))

    def _encode(self, weights: Weights, chunk: Chunk) -> tuple[Tensor, ...]:
        spans = [Span(block.start, block.stop, block.count, block.width) for block in chunk.blocks]
        biases = [self._bias(self.t5.encoder, span.width) for span in spans]
        scores = [
            (bias.detach() + block.mask(bias.dtype)).to(self.dtype).flatten(0, 1)
            for bias, block in zip(biases, chunk.blocks, strict=True)
        ]
        x = self._embed(weights["table"], chunk.tokens)
        for number in range(self.config.num_layers):
            x = self._self_attention(weights, f"encoder.{number}", x, spans, scores, biases)
            x = self._feed_forward(weights, f"encoder.{number}", x)
        memory = weights["memory"]
        drop, before = self._mask(self._p, *x.shape), self._before(x, memory)
        layers = self.config.num_decoder_layers
        return sublayers.Memory.apply(x, memory, spans, drop, before, self.heads, layers, self.eps, *memory.masters)

    def _decode(self, weights: Weights, chunk: Chunk, labels: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
        levels, blocks = labels.shape[1], chunk.blocks
        together = max(1, LANES // levels)  # sequences that share a group of the self-attention
        before = torch.full_like(labels, self.config.decoder_start_token_id)
        before[:, 1:] = labels[:, :-1]
        before = pad_rows(before, together)
        width = together * levels
        span = Span(0, before.numel(), len(before) // together, width)
        bias = self._bias(self.t5.decoder, width)
        place = torch.arange(width, device=labels.device)
        seen = (place[:, None] // levels == place // levels) & (place[:, None] >= place)
        score = (bias.detach() + barrier(seen, bias.dtype)).to(self.dtype)
        score = score.expand(span.count, -1, -1, -1).flatten(0, 1)
        crossing = [
            block.cross_mask(self.dtype, levels).expand(-1, self.heads, -1, -1).flatten(0, 1) for block in blocks
        ]
        x = self._embed(weights["table"], before.flatten())
        for number in range(self.config.num_decoder_layers):
            name = f"decoder.{number}"
            x = self._self_attention(weights, name, x, [span], [score], [bias])
            own = memory[number * len(blocks) : (number + 1) * len(blocks)]
            x = self._cross_attention(weights, name, x, blocks, crossing, own, levels)
            x = self._feed_forward(weights, name, x)
        head = weights["head"]
        mask = self._mask(self._p, *x.shape)
        return sublayers.Head.apply(x, head, labels, mask, self.eps, self.weigh, *head.masters)

    # ---- sublayers -------------------------------------------------------------------------------------------------

    def _bias(self, stack: torch.nn.Module, width: int) -> Tensor:
        """[1, H, width, width], by relative position."""
        return stack.block[0].layer[0].SelfAttention.compute_bias(width, width)

    def _embed(self, table: Matrix, tokens: Tensor) -> Tensor:
        mask = self._mask(self._p, len(tokens), self.config.d_model)
        return sublayers.Embedding.apply(table, tokens, mask, *table.masters)

    def _self_attention(
        self, weights: Weights, name: str, x: Tensor, spans: list[Span], scores: list[Tensor], biases: list[Tensor]
    ) -> Tensor:
        qkv, o = weights[f"{name}.qkv"], weights[f"{name}.o"]
        drops = self._drops(x, [score.shape for score in scores], qkv, o)
        return sublayers.SelfAttention.apply(
            x, qkv, o, spans, scores, drops, self.heads, self.eps, *qkv.masters, *o.masters, *biases
        )

    def _cross_attention(
        self,
        weights: Weights,
        name: str,
        x: Tensor,
        blocks: list[Block],
        scores: list[Tensor],
        memory: tuple[Tensor, ...],
        levels: int,
    ) -> Tensor:
        q, o = weights[f"{name}.cross_q"], weights[f"{name}.cross_o"]
        drops = self._drops(x, [score.shape for score in scores], q, o)
        return sublayers.CrossAttention.apply(
            x, q, o, blocks, scores, drops, self.heads, levels, self.eps, *q.masters, *o.masters, *memory
        )

    def _feed_forward(self, weights: Weights, name: str, x: Tensor) -> Tensor:
        wi, wo = weights[f"{name}.wi"], weights[f"{name}.wo"]
        drops = self._drops(x, [torch.Size((len(x), wo.weight.data.shape[1]))], wi, wo)
        gated = self.config.is_gated_act
        return sublayers.FeedForward.apply(x, wi, wo, gated, drops, self.eps, *wi.masters, *wo.masters)
