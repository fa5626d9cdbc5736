"""T5's forward pass for decoding: plain weights in, log-probabilities out, nothing kept that beam search does not need.

The numbers are those of transformers' T5 in evaluation mode. What differs is the bookkeeping: the scales of the layer
norms are folded into the matrices behind them; query, key and value are one product, which the first layer looks up,
because it depends on nothing but the token; the keys and values of the history are made once a user, with the beams as
the query axis; and those of the beams are only ever appended, where each beam reads its ancestors by their places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from recbole_gmc.model.seq2seq import output_scale
from recbole_gmc.products import Products

DENSE = 128  # places up to which attention over all beams with a mask is cheaper than fetching each beam's ancestors


@dataclass
class Memory:
    """What a batch of B histories leaves behind, and what its beams append.

    Attributes:
        cross: per decoder layer, keys and values of the history [2, heads, B, S, d_kv].
        blocked: [B, 1, S] with -inf on padding, or ``None`` without padding.
        tree: per decoder layer, keys and values of all beams so far, float32 [2, heads, B, room, d_kv].
        used: how many of ``room`` places are taken.
    """

    cross: list[torch.Tensor]
    blocked: torch.Tensor | None
    tree: list[torch.Tensor]
    used: int = 0

    @property
    def room(self) -> int:
        return self.tree[0].shape[3]

    @property
    def place_bytes(self) -> int:
        """What one place takes, of all users and layers."""
        return sum(tree[..., 0, :].numel() * tree.element_size() for tree in self.tree)

    def grow(self, room: int) -> None:
        """Makes room for that many places in all."""
        more = room - self.room
        for layer, tree in enumerate(self.tree if more > 0 else ()):
            self.tree[layer] = F.pad(tree, (0, 0, 0, more))  # one after the other: only one is held twice

    def of(self, users: torch.Tensor) -> Memory:
        """The memory of some users, int64 [b]."""
        return replace(
            self,
            cross=[pair[:, :, users] for pair in self.cross],
            blocked=None if self.blocked is None else self.blocked[users],
            tree=[pair[:, :, users] for pair in self.tree],
        )


class DecoderNetwork:
    """The encoder and the decoder of a T5 with tied head.

    The residual stream, the norms, the attention of the beams among themselves and the head are float32 in every
    precision: in bf16 it is the head that would spoil the order of the items, and the rest costs little.

    Args:
        state: plain T5 weights by their transformers names, adapters merged (``DomainAdapters.merged_state``).
        config: the model's ``T5Config``; only read.
        products: how matrices are multiplied.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], config: Any, products: Products | None = None) -> None:
        self.products = products or Products()
        self.exact = self.products.in_float32()
        self.heads, self.width = config.num_heads, config.d_kv
        self.buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.gated, self.inner = config.is_gated_act, config.d_ff * (2 if config.is_gated_act else 1)
        self.start = config.decoder_start_token_id
        # Copies: later training must not change what this moment's weights recommend.
        weights = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in state.items()}
        self.embedding = weights["shared.weight"]
        self.device = self.embedding.device
        # sqrt(mean(x^2) + eps) = hypot(|x|, sqrt(d_model * eps)) / sqrt(d_model)
        self.least = torch.tensor((config.d_model * config.layer_norm_epsilon) ** 0.5, device=self.device)
        for name, scale in weights.items():
            if name.endswith("layer_norm.weight"):
                weights[name] = scale * config.d_model**0.5
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        self.encoder_bias, self.decoder_bias = weights[f"encoder.{bias}"], weights[f"decoder.{bias}"]
        self.encoder = [self._block(weights, f"encoder.block.{i}.", False) for i in range(config.num_layers)]
        self.decoder = [self._block(weights, f"decoder.block.{i}.", True) for i in range(config.num_decoder_layers)]
        norm = weights["encoder.final_layer_norm.weight"]
        self.cross = [
            self._parts(weights, f"decoder.block.{i}.layer.1.EncDecAttention.", "kv", norm)
            for i in range(config.num_decoder_layers)
        ]
        head = weights.get("lm_head.weight", self.embedding)
        self.head = self.exact.prepare(head * weights["decoder.final_layer_norm.weight"] * output_scale(config))
        # What the first layers make of each token of the vocabulary.
        with self.products.batched():
            normed = self._norm(self.embedding)
            self.encoder_first = self.products.parts(normed, self.encoder[0]["qkv"])
            self.decoder_first = self.products.linear(normed, self.decoder[0]["qkv"])

    def _block(self, weights: Mapping[str, torch.Tensor], name: str, decoder: bool) -> dict[str, torch.Tensor]:
        attention, norm = f"{name}layer.0.SelfAttention.", weights[f"{name}layer.0.layer_norm.weight"]
        block = {"o": self._joined(weights, attention, "o")}
        if decoder:
            cross = f"{name}layer.1.EncDecAttention."
            block["qkv"] = self._joined(weights, attention, "qkv", norm)
            block["cross_q"] = self._joined(weights, cross, "q", weights[f"{name}layer.1.layer_norm.weight"])
            block["cross_o"] = self._joined(weights, cross, "o")
        else:
            block["qkv"] = self._parts(weights, attention, "qkv", norm)
        last = f"{name}layer.{2 if decoder else 1}."
        norm, dense = weights[f"{last}layer_norm.weight"], f"{last}DenseReluDense."
        block["wi"] = self._joined(weights, dense, ("wi_0", "wi_1") if self.gated else ("wi",), norm)
        block["wo"] = self._joined(weights, dense, ("wo",))
        return block

    def _joined(
        self, weights: Mapping[str, torch.Tensor], name: str, parts: Iterable[str], norm: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The matrices of ``parts`` as one, with the scale of the norm before them folded in."""
        joined = torch.cat([weights[f"{name}{part}.weight"] for part in parts])
        return self.products.prepare(joined if norm is None else joined * norm)

    def _parts(
        self, weights: Mapping[str, torch.Tensor], name: str, parts: Iterable[str], norm: torch.Tensor
    ) -> torch.Tensor:
        """The same, a matrix for each part and head."""
        joined = torch.cat([weights[f"{name}{part}.weight"] for part in parts]) * norm
        return self.products.prepare_parts(joined.split(self.width))

    def user_bytes(self, length: int, beams: int, levels: int) -> int:
        """About what one user takes at the widest moment: ``length`` tokens of history, ``beams`` on each level."""
        width, size = self.heads * self.width, self.products.dtype.itemsize
        kept = 2 * len(self.decoder) * width * (size * length + 4 * beams * levels)
        encoding = length * (4 * len(self.embedding[0]) + size * (4 * width + self.inner + 2 * self.heads * length))
        seen = length + beams * levels
        stepping = 4 * beams * (3 * len(self.embedding) + 4 * width + self.inner + 2 * self.heads * seen)
        return kept + max(encoding, stepping)

    def encode(self, input_ids: torch.Tensor, mask: torch.Tensor | None, room: int) -> Memory:
        """Encodes histories int64 [B, S] once.

        Args:
            mask: [B, S], 0 on padding; ``None`` without padding.
            room: places for beams.
        """
        size, length = input_ids.shape
        position = torch.arange(length, device=self.device)
        bias = self._bias(self.encoder_bias, position - position[:, None], both_ways=True)[:, None]
        blocked = None
        if mask is not None:
            blocked = bias.new_zeros(size, 1, length).masked_fill_((mask == 0)[:, None], -math.inf)
            bias = bias + blocked
            blocked = blocked.to(self.products.dtype)
        bias, tokens = bias.to(self.products.dtype), input_ids.flatten()
        hidden = self.embedding[tokens]
        with self.products.batched():
            for number, block in enumerate(self.encoder):
                if number == 0:
                    heads = self.encoder_first.index_select(1, tokens)
                else:
                    heads = self.products.parts(self._norm(hidden), block["qkv"])
                heads = heads.view(3, self.heads, size, length, self.width)
                hidden += self.products.linear(self._attend(heads[0], heads[1:], bias), block["o"])
                hidden += self._feed_forward(hidden, block)
            hidden = self._norm(hidden).to(self.products.dtype)
            shape = (2, self.heads, size, length, self.width)
            cross = [self.products.parts(hidden, weight).view(shape) for weight in self.cross]
        tree = [self.embedding.new_empty(2, self.heads, size, room, self.width) for _ in self.decoder]
        return Memory(cross, blocked, tree)

    def step(self, tokens: torch.Tensor, memory: Memory, lineage: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Appends beams and returns the log-probabilities after them, normalised over the whole vocabulary.

        Args:
            tokens: int64 [B, W], the last token of each beam.
            memory: W more of its places are taken.
            lineage: int64 [B, W, A], the places of each beam's ancestors and of itself.
            bias: float32 [heads, B or 1, W or 1, A], the position bias towards them; -inf where there is none.

        Returns:
            float32 [B, W, vocabulary].
        """
        size, width = tokens.shape
        begin = memory.used
        memory.used += width
        look = self._look(memory.used, lineage, bias)
        tokens = tokens.flatten()
        hidden = self.embedding[tokens]
        with self.products.batched():
            for number, block in enumerate(self.decoder):
                if number == 0:
                    joined = self.decoder_first[tokens]
                else:
                    joined = self.products.linear(self._norm(hidden), block["qkv"])
                heads = joined.view(size, width, 3, self.heads, self.width).permute(2, 3, 0, 1, 4)
                memory.tree[number][..., begin : begin + width, :] = heads[1:]
                hidden += self.products.linear(look(heads[0], memory.tree[number]), block["o"])
                query = self.products.linear(self._norm(hidden), block["cross_q"])
                query = query.view(size, width, self.heads, self.width).permute(2, 0, 1, 3)
                mixed = self._attend(query, memory.cross[number], memory.blocked)
                hidden += self.products.linear(mixed, block["cross_o"])
                hidden += self._feed_forward(hidden, block)
        return self.exact.linear(self._norm(hidden), self.head).log_softmax(-1).view(size, width, -1)

    def lineage_bias(self, distance: torch.Tensor) -> torch.Tensor:
        """The decoder's bias [heads, ...] for keys ``distance`` [...] >= 0 positions back."""
        return self._bias(self.decoder_bias, -distance, both_ways=False)

    def _bias(self, table: torch.Tensor, offset: torch.Tensor, both_ways: bool) -> torch.Tensor:
        """T5's bucketed bias for keys ``offset`` positions ahead: exact buckets near by, logarithmic ones far off."""
        buckets = self.buckets // 2 if both_ways else self.buckets
        far = offset.abs() if both_ways else (-offset).clamp(min=0)
        exact = buckets // 2
        ratio = torch.log(far.float() / exact) / math.log(self.max_distance / exact)
        logarithmic = (exact + ratio * (buckets - exact)).clamp(max=buckets - 1)
        bucket = torch.where(far < exact, far, logarithmic.long())
        if both_ways:
            bucket = bucket + buckets * (offset > 0)
        return table[bucket].movedim(-1, 0).contiguous()

    def _norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Root-mean-square normalisation but for its scale and sqrt(d_model), which are folded into the next matrix."""
        return hidden / torch.hypot(torch.linalg.vector_norm(hidden, dim=-1, keepdim=True), self.least)

    def _attend(self, query: torch.Tensor, pair: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """T5's unscaled attention.

        Args:
            query: [heads, B, W, d_kv].
            pair: keys and values [2, heads, B, S, d_kv].
            bias: [heads or 1, B or 1, W or 1, S].

        Returns:
            [B * W, heads * d_kv].
        """
        heads, size, width, _ = query.shape
        key, value = pair.flatten(1, 2)
        scores = torch.bmm(query.reshape(heads * size, width, -1), key.transpose(1, 2))
        if bias is not None:
            scores.view(heads, size, width, -1).add_(bias)
        # From bf16 into float32 and back: into bf16 torch takes up to four times as long for rows as short as these.
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        mixed = torch.bmm(weights, value)
        return mixed.view(heads, size, width, -1).permute(1, 2, 0, 3).reshape(size * width, -1)

    def _look(
        self, used: int, lineage: torch.Tensor, bias: torch.Tensor
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """How beams attend to their ancestors: over all ``used`` places with a mask, or over those fetched by place."""
        size, width, _ = lineage.shape
        shape = (self.heads, *lineage.shape)
        if used <= DENSE:
            mask = bias.new_full((self.heads, size, width, used), -math.inf)
            mask = mask.scatter_reduce_(3, lineage.expand(shape), bias.expand(shape), "amax")
            return lambda query, tree: self._attend(query.float(), tree[..., :used, :], mask)
        user = torch.arange(size, device=lineage.device)[:, None, None]

        def fetch(query: torch.Tensor, tree: torch.Tensor) -> torch.Tensor:
            key, value = tree[:, :, user, lineage]
            weight = ((query[..., None, :] * key).sum(-1) + bias).softmax(-1)
            mixed = (weight[..., None] * value).sum(-2)
            return mixed.permute(1, 2, 0, 3).reshape(size * width, -1)

        return fetch

    def _feed_forward(self, hidden: torch.Tensor, block: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = self._norm(hidden)
        if self.gated:
            gate, inner = self.products.linear(rows, block["wi"]).chunk(2, dim=-1)
            return self.products.linear(F.gelu(gate, approximate="tanh") * inner, block["wo"])
        return self.products.linear(self.products.linear_relu(rows, block["wi"]), block["wo"])
