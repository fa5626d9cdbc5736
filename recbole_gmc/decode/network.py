"""T5's forward pass for decoding: plain weights in, log-probabilities out, nothing kept that beam search does not need.

The numbers are those of transformers' T5 in evaluation mode. What differs is the bookkeeping: the scales of the layer
norms are folded into the matrices behind them, query, key and value are one product, the keys and values of the
history are made once a user with the beams as the query axis, and the keys of the beams are only ever appended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from recbole_gmc.model.seq2seq import output_scale


@dataclass
class Memory:
    """What one batch of histories leaves behind: cross-attention keys and values, and the growing keys of its beams.

    ``cross`` holds per decoder layer keys and values [B, heads, S, d_kv]; ``bias`` is [B, 1, 1, S] with -inf on
    padding, or ``None`` without padding; ``tree`` per decoder layer keys and values [B, heads, positions, d_kv].
    """

    cross: list[tuple[torch.Tensor, torch.Tensor]]
    bias: torch.Tensor | None
    tree: list[tuple[torch.Tensor, torch.Tensor] | None]


class DecoderNetwork:
    """The encoder and the decoder of a T5 with tied head.

    Args:
        state: plain T5 weights by their transformers names, adapters merged (``DomainAdapters.merged_state``).
        config: the model's ``T5Config``; only read.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], config: Any) -> None:
        self.heads, self.width = config.num_heads, config.d_kv
        self.eps = config.layer_norm_epsilon
        self.buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.gated = config.is_gated_act
        self.start = config.decoder_start_token_id
        # Copies: later training must not change what this moment's weights recommend.
        weights = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in state.items()}
        self.embedding = weights["shared.weight"]
        self.device = self.embedding.device
        self.encoder = [self._block(weights, f"encoder.block.{i}.", False) for i in range(config.num_layers)]
        self.decoder = [self._block(weights, f"decoder.block.{i}.", True) for i in range(config.num_decoder_layers)]
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        self.encoder_bias, self.decoder_bias = weights[f"encoder.{bias}"], weights[f"decoder.{bias}"]
        # One product makes the history's keys and values for all decoder layers.
        norm = weights["encoder.final_layer_norm.weight"]
        cross = [weights[f"decoder.block.{i}.layer.1.EncDecAttention.{n}.weight"] * norm
                 for i in range(config.num_decoder_layers) for n in "kv"]  # fmt: skip
        self.cross = torch.cat(cross)
        head = weights.get("lm_head.weight", self.embedding)
        self.head = head * weights["decoder.final_layer_norm.weight"] * output_scale(config)

    def _block(self, weights: Mapping[str, torch.Tensor], name: str, decoder: bool) -> dict[str, torch.Tensor]:
        attention, norm = f"{name}layer.0.SelfAttention.", weights[f"{name}layer.0.layer_norm.weight"]
        block = {
            "qkv": torch.cat([weights[f"{attention}{part}.weight"] for part in "qkv"]) * norm,
            "o": weights[f"{attention}o.weight"],
        }
        if decoder:
            cross = f"{name}layer.1.EncDecAttention."
            block["cross_q"] = weights[f"{cross}q.weight"] * weights[f"{name}layer.1.layer_norm.weight"]
            block["cross_o"] = weights[f"{cross}o.weight"]
        last = f"{name}layer.{2 if decoder else 1}."
        norm, dense = weights[f"{last}layer_norm.weight"], f"{last}DenseReluDense."
        inner = ("wi_0", "wi_1") if self.gated else ("wi",)
        block["wi"] = torch.cat([weights[f"{dense}{part}.weight"] for part in inner]) * norm
        block["wo"] = weights[f"{dense}wo.weight"]
        return block

    def encode(self, input_ids: torch.Tensor, mask: torch.Tensor) -> Memory:
        """Encodes histories int64 [B, S] once; ``mask`` [B, S] is 0 on padding."""
        size, length = input_ids.shape
        padding = mask == 0
        padded = bool(padding.any())
        position = torch.arange(length, device=self.device)
        bias = self._bias(self.encoder_bias, position - position[:, None], both_ways=True)[None]
        blocked = None
        if padded:
            blocked = bias.new_zeros(size, 1, 1, length).masked_fill_(padding[:, None, None], -math.inf)
            bias = bias + blocked
        hidden = self.embedding[input_ids]
        for block in self.encoder:
            query, key, value = self._split(F.linear(self._norm(hidden), block["qkv"]), 3)
            hidden = hidden + F.linear(_attend(query, key, value, bias), block["o"])
            hidden = hidden + self._feed_forward(hidden, block)
        crossed = self._split(F.linear(self._norm(hidden), self.cross), 2 * len(self.decoder))
        pairs = [(crossed[2 * i], crossed[2 * i + 1]) for i in range(len(self.decoder))]
        return Memory(pairs, blocked, [None] * len(self.decoder))

    def step(self, tokens: torch.Tensor, memory: Memory, bias: torch.Tensor) -> torch.Tensor:
        """Appends one level of beams to the tree and returns their logits over the whole vocabulary.

        Args:
            tokens: int64 [B, W], the last token of each beam; all beams stand on the same position.
            memory: grows by W positions.
            bias: [B or 1, heads, W, positions]: relative position bias towards ancestors and itself, -inf elsewhere.

        Returns:
            logits [B, W, vocabulary].
        """
        hidden = self.embedding[tokens]
        for number, block in enumerate(self.decoder):
            query, key, value = self._split(F.linear(self._norm(hidden), block["qkv"]), 3)
            if memory.tree[number] is not None:
                old_key, old_value = memory.tree[number]
                key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
            memory.tree[number] = (key, value)
            hidden = hidden + F.linear(_attend(query, key, value, bias), block["o"])
            (query,) = self._split(F.linear(self._norm(hidden), block["cross_q"]), 1)
            hidden = hidden + F.linear(_attend(query, *memory.cross[number], memory.bias), block["cross_o"])
            hidden = hidden + self._feed_forward(hidden, block)
        return F.linear(self._norm(hidden), self.head)

    def decoder_position_bias(self, distance: torch.Tensor) -> torch.Tensor:
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
        """Root-mean-square normalisation without its scale, which is folded into the next matrix."""
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)

    def _split(self, joined: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """[B, S, parts * heads * d_kv] to ``parts`` tensors [B, heads, S, d_kv]."""
        size, length, _ = joined.shape
        return joined.view(size, length, parts, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)

    def _feed_forward(self, hidden: torch.Tensor, block: dict[str, torch.Tensor]) -> torch.Tensor:
        inner = F.linear(self._norm(hidden), block["wi"])
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            inner = F.gelu(gate, approximate="tanh") * inner
        else:
            inner = inner.relu_()
        return F.linear(inner, block["wo"])


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """T5's unscaled attention, heads joined: [B, heads, W, d_kv] queries to [B, W, heads * d_kv]."""
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)
