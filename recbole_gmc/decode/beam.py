"""Beam search that never leaves a domain's prefix tree, and says when its list is provably the true top-K."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from recbole_gmc.decode.network import DecoderNetwork, Memory
from recbole_gmc.decode.trie import Trie
from recbole_gmc.errors import GMCError
from recbole_gmc.model.vocabulary import Vocabulary

ROUNDING = 1e-4  # what fp32 sums of log-probabilities may differ by from one batch shape to another


@dataclass(frozen=True)
class BeamResult:
    """The best items of each user.

    Attributes:
        items: int64 [B, K], the tree's item rows, best first; -1 where a catalogue has fewer than K items.
        scores: float32 [B, K], log-probabilities; -inf where ``items`` is -1.
        certified: bool [B], True where no item outside the list can score as high as the list's last one.
    """

    items: torch.Tensor
    scores: torch.Tensor
    certified: torch.Tensor


@dataclass(frozen=True)
class _Beams:
    """The beams of one level, in the order of their nodes: node and score [B, W]; a dead place scores -inf."""

    nodes: torch.Tensor
    scores: torch.Tensor
    parents: torch.Tensor


class BeamSearch:
    """Searches one domain's tree with one set of weights.

    Scores are sums of log-softmax over the whole vocabulary, as transformers' ``generate`` takes them. Equal scores
    are ordered by semantic ID, the smaller code path first; this also decides who stays in the beam.

    Args:
        state: plain T5 weights, adapters merged.
        config: their ``T5Config``.
        trie: the domain's prefix tree.
        vocabulary: the tokens of its codes.
        beam_size: K, beams and results.

    Raises:
        GMCError: the tree and the vocabulary do not fit, or K < 1.
    """

    def __init__(
        self, state: Mapping[str, torch.Tensor], config: Any, trie: Trie, vocabulary: Vocabulary, beam_size: int
    ) -> None:
        if (trie.levels, trie.codebook_size) != (vocabulary.levels, vocabulary.codebook_size):
            raise GMCError(
                f"a tree of {trie.levels} levels of {trie.codebook_size} codes does not fit a vocabulary of "
                f"{vocabulary.levels} levels of {vocabulary.codebook_size}"
            )
        if beam_size < 1:
            raise GMCError(f"{beam_size!r} beams", where="beam_size", mend="It must be >= 1")
        self.network = DecoderNetwork(state, config)
        self.trie = trie.to(self.network.device)
        self.vocabulary = vocabulary
        self.beam_size = beam_size

    @torch.no_grad()
    def search(self, input_ids: torch.Tensor, mask: torch.Tensor, beam_size: int | None = None) -> BeamResult:
        """Ranks the domain's items for histories int64 [B, S] (see ``encode_histories``).

        Args:
            mask: [B, S], 0 on padding.
            beam_size: another K for this call.

        Raises:
            GMCError: the network's output is not a number.
        """
        size, wanted = len(input_ids), beam_size or self.beam_size
        device = self.network.device
        memory = self.network.encode(input_ids.to(device), mask.to(device))
        tree = _TreeAttention(self.network, size)
        root = torch.zeros(size, 1, dtype=torch.long, device=device)
        beams = _Beams(root, torch.zeros(size, 1, device=device), root)
        tokens = torch.full_like(root, self.network.start)
        pruned = torch.full((size,), -math.inf, device=device)
        last = self.trie.levels - 1
        for level in range(last + 1):
            logits = self._step(tokens, memory, tree.grow(beams.parents))
            beams, best_pruned = self._grow(beams, logits, level, wanted, ranked=level == last)
            if level < last:
                pruned = torch.maximum(pruned, best_pruned)
                tokens = self.vocabulary.level(level).start + self.trie.codes[level][beams.nodes]
        items = self.trie.items[beams.nodes].masked_fill(beams.scores == -math.inf, -1)
        short = wanted - items.shape[1]
        items = torch.nn.functional.pad(items, (0, short), value=-1)
        scores = torch.nn.functional.pad(beams.scores, (0, short), value=-math.inf)
        # Log-probabilities only fall along a path, so all that was cut off ends below the best prefix cut off.
        certified = (pruned == -math.inf) | (pruned < scores[:, -1] - ROUNDING)
        return BeamResult(items, scores, certified)

    def _step(self, tokens: torch.Tensor, memory: Memory, bias: torch.Tensor) -> torch.Tensor:
        return self.network.step(tokens, memory, bias)

    def _grow(
        self, beams: _Beams, logits: torch.Tensor, level: int, wanted: int, ranked: bool
    ) -> tuple[_Beams, torch.Tensor]:
        """One level down: all children of all beams, of which the best ``wanted`` stay.

        Returns:
            The new beams, best first if ``ranked``, else in the order of their nodes; and the best score cut off [B].
        """
        first, codes = self.trie.first[level], self.trie.codes[level]
        starts = first[beams.nodes]
        counts = (first[beams.nodes + 1] - starts).masked_fill(beams.scores == -math.inf, 0)
        ends = counts.cumsum(1)
        # Column c of a user is the c-th child over all its beams: the children of a beam are neighbours in the tree.
        column = torch.arange(int(ends[:, -1].max()), device=logits.device).expand(len(logits), -1).contiguous()
        parent = torch.searchsorted(ends, column, right=True)
        outside = parent == beams.nodes.shape[1]
        parent = parent.masked_fill_(outside, 0)
        node = (starts - ends + counts).gather(1, parent).add_(column).masked_fill_(outside, 0)
        total = logits.logsumexp(-1)
        if not bool(total.isfinite().all()):
            raise GMCError(
                "the recommender's output is not a number",
                mend="Its weights are damaged or training diverged; go back to an earlier checkpoint or lower the "
                "learning rate",
            )
        token = self.vocabulary.level(level).start + codes[node]
        step = logits.flatten(1).gather(1, parent * logits.shape[-1] + token) - total.gather(1, parent)
        scores = (beams.scores.gather(1, parent) + step.clamp_(max=0.0)).masked_fill_(outside, -math.inf)
        kept = _best(scores, wanted + 1)
        cut = (
            scores.gather(1, kept[:, wanted:])
            if kept.shape[1] > wanted
            else scores.new_full((len(scores), 1), -math.inf)
        )
        kept = kept[:, :wanted]
        if not ranked:
            kept = kept.sort(1).values
        alive = scores.gather(1, kept)
        return _Beams(node.gather(1, kept), alive, parent.gather(1, kept)), cut.squeeze(1)


class _TreeAttention:
    """Who sees whom: each beam sees its ancestors and itself among all positions appended so far."""

    def __init__(self, network: DecoderNetwork, size: int) -> None:
        self.network = network
        self.seen = torch.zeros(size, 1, 0, dtype=torch.bool, device=network.device)
        self.position = torch.zeros(0, dtype=torch.long, device=network.device)
        self.depth = 0

    def grow(self, parents: torch.Tensor) -> torch.Tensor:
        """Adds a level of beams on their ``parents`` [B, W] of the level before; gives its bias [B, heads, W, T]."""
        size, width = parents.shape
        above = self.seen.gather(1, parents[..., None].expand(-1, -1, self.seen.shape[2]))
        itself = torch.eye(width, dtype=torch.bool, device=parents.device).expand(size, -1, -1)
        self.seen = torch.cat([above, itself], dim=2)
        self.position = torch.cat([self.position, self.position.new_full((width,), self.depth)])
        bias = self.network.decoder_position_bias(self.depth - self.position)
        self.depth += 1
        return torch.where(self.seen[:, None], bias[None, :, None], -math.inf)


def _best(scores: torch.Tensor, wanted: int) -> torch.Tensor:
    """Columns int64 [B, min(wanted, C)] of the best scores, best first; equal scores by column.

    ``topk`` promises no order among equals, so score and column go into one integer: the bits of a float32, with
    those of a negative number turned over, order as the numbers do.
    """
    width = scores.shape[1]
    bits = (scores + 0.0).view(torch.int32)
    rank = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    column = torch.arange(width - 1, -1, -1, device=scores.device)
    best = ((rank << 32) | column).topk(min(wanted, width), dim=1).values
    return (width - 1) - (best & 0xFFFFFFFF)
