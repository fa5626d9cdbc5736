"""Beam search that never leaves a domain's prefix tree, and says when its list is provably the true top-K."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from recbole_gmc.decode.network import DecoderNetwork, Memory
from recbole_gmc.decode.soundness import refuse_broken
from recbole_gmc.decode.trie import Trie
from recbole_gmc.errors import GMCError
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.products import Products

# What sums of log-probabilities may differ by from one batch shape to another.
ROUNDING = {"fp32": 1e-4, "bf16": 5e-2}


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
class Beams:
    """The beams of one level: nodes int64 [B, W] and scores [B, W], -inf where dead.

    ``lineage`` int64 [B, W, A] holds the places of their ancestors in the network's memory.
    """

    nodes: torch.Tensor
    scores: torch.Tensor
    lineage: torch.Tensor


@dataclass(frozen=True)
class Children:
    """All children of some beams, C columns a user in the order of their nodes; a column past the last one is blank.

    Attributes:
        nodes: int64 [B, C]; 0 where blank.
        parents: int64 [B, C], which beam each hangs on; 0 where blank.
        scores: float32 [B, C]; -inf where blank or the parent is dead.
    """

    nodes: torch.Tensor
    parents: torch.Tensor
    scores: torch.Tensor

    def beams(self, columns: torch.Tensor, lineage: torch.Tensor) -> Beams:
        """Those in ``columns`` [B, W], with the places of their ancestors from their parents' ``lineage``."""
        parents = self.parents.gather(1, columns)[..., None].expand(-1, -1, lineage.shape[2])
        return Beams(self.nodes.gather(1, columns), self.scores.gather(1, columns), lineage.gather(1, parents))

    def of(self, users: torch.Tensor) -> Children:
        return Children(self.nodes[users], self.parents[users], self.scores[users])

    def without(self, columns: torch.Tensor) -> Children:
        """All but those in ``columns``, which score -inf."""
        return replace(self, scores=self.scores.scatter(1, columns, -math.inf))


@dataclass(frozen=True)
class Trace:
    """What a search leaves behind.

    Attributes:
        memory: the network's.
        leaves: int64 [B, W], the nodes of the list, best first; -1 where there is none.
        scores: float32 [B, W], theirs.
        cut: per level but the last, the children that were cut off, with their parents' lineage [B, W, A].
    """

    memory: Memory
    leaves: torch.Tensor
    scores: torch.Tensor
    cut: list[tuple[Children, torch.Tensor]]


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
        products: how matrices are multiplied, and in which precision.

    Raises:
        GMCError: the tree and the vocabulary do not fit, or K < 1.
    """

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        config: Any,
        trie: Trie,
        vocabulary: Vocabulary,
        beam_size: int,
        products: Products | None = None,
    ) -> None:
        if (trie.levels, trie.codebook_size) != (vocabulary.levels, vocabulary.codebook_size):
            raise GMCError(
                f"a tree of {trie.levels} levels of {trie.codebook_size} codes does not fit a vocabulary of "
                f"{vocabulary.levels} levels of {vocabulary.codebook_size}"
            )
        if beam_size < 1:
            raise GMCError(f"{beam_size!r} beams", where="beam_size", mend="It must be >= 1")
        self.network = DecoderNetwork(state, config, products)
        self.trie = trie.to(self.network.device)
        self.vocabulary = vocabulary
        self.beam_size = beam_size
        self.rounding = ROUNDING[self.network.products.precision]

    @torch.no_grad()
    def search(self, input_ids: torch.Tensor, mask: torch.Tensor) -> BeamResult:
        """Ranks the domain's items for histories int64 [B, S] (see ``encode_histories``).

        Args:
            mask: [B, S], 0 on padding.

        Raises:
            GMCError: the network's output is not a number.
        """
        return self.trace(input_ids, mask)[0]

    def trace(self, input_ids: torch.Tensor, mask: torch.Tensor, keep: bool = False) -> tuple[BeamResult, Trace]:
        """The search with what it leaves behind; with ``keep`` also what it cut off, from which another can go on."""
        size, wanted = len(input_ids), self.beam_size
        network, last, device = self.network, self.trie.levels - 1, self.network.device
        mask = mask.to(device) if bool((mask == 0).any()) else None
        memory = network.encode(input_ids.to(device), mask, room=1 + last * wanted)
        root = torch.zeros(size, 1, dtype=torch.long, device=device)
        beams = Beams(root, torch.zeros(size, 1, device=device), root[..., None][..., :0])
        tokens = torch.full_like(root, network.start)
        pruned = torch.full((size,), -math.inf, device=device)
        broken = torch.zeros(size, dtype=torch.bool, device=device)
        levels = []
        for level in range(last + 1):
            place = torch.arange(memory.used, memory.used + tokens.shape[1], device=device)
            beams = replace(beams, lineage=torch.cat([beams.lineage, place.expand(size, -1)[..., None]], dim=2))
            bias = network.lineage_bias(torch.arange(level, -1, -1, device=device))
            log_probs = network.step(tokens, memory, beams.lineage, bias[:, None, None])
            broken |= log_probs[..., 0].isnan().any(1)
            children = self.children(beams, log_probs[..., self.vocabulary.level(level)], self.trie.widest[level])
            kept, cut = best(children.scores, wanted, ranked=level == last)
            if level < last:
                pruned = torch.maximum(pruned, cut)
                if keep:
                    levels.append((children.without(kept), beams.lineage))
            beams = children.beams(kept, beams.lineage)
            tokens = self.vocabulary.level(level).start + self.trie.code[beams.nodes].long()
        refuse_broken(broken)
        leaves = torch.where(beams.scores == -math.inf, -1, beams.nodes)
        trace = Trace(memory, leaves, beams.scores, levels)
        # Log-probabilities only fall along a path, so all that was cut off ends below the best prefix cut off.
        result = self.result(leaves, beams.scores, wanted)
        certified = (pruned == -math.inf) | (pruned < result.scores[:, -1] - self.rounding)
        return replace(result, certified=certified), trace

    def result(self, leaves: torch.Tensor, scores: torch.Tensor, wanted: int) -> BeamResult:
        """Lists of ``wanted`` items from leaves [B, W], -1 where there is none, best first; all of them certified."""
        items = self.trie.item(leaves.clamp(min=self.trie.start[-2])).masked_fill_(leaves < 0, -1)
        short = wanted - leaves.shape[1]
        return BeamResult(
            F.pad(items, (0, short), value=-1),
            F.pad(scores, (0, short), value=-math.inf),
            torch.ones(len(leaves), dtype=torch.bool, device=leaves.device),
        )

    def children(self, beams: Beams, log_probs: torch.Tensor, widest: int) -> Children:
        """All children of some beams.

        Args:
            log_probs: [B, W, N], of the codes of the level that each beam's children stand on.
            widest: the most children that a beam can have.
        """
        starts, counts = self.trie.children(beams.nodes)
        counts = counts.masked_fill_(beams.scores == -math.inf, 0)
        ends = counts.cumsum(1)
        # Column c of a user is the c-th child over all its beams: the children of a beam are neighbours in the tree.
        # Only on a CPU may one ask how many there are; cuda would have to wait for the answer.
        most = int(ends[:, -1].max()) if ends.device.type == "cpu" else ends.shape[1] * widest
        columns = torch.arange(most, device=ends.device)
        parents = torch.searchsorted(ends, columns.expand(len(ends), -1).contiguous(), right=True)
        blank = parents == beams.nodes.shape[1]
        parents = parents.masked_fill_(blank, 0)
        nodes = (starts - ends + counts).gather(1, parents).add_(columns).masked_fill_(blank, 0)
        token = parents * log_probs.shape[2] + self.trie.code[nodes]
        scores = (log_probs + beams.scores[..., None]).flatten(1).gather(1, token)
        return Children(nodes, parents, scores.masked_fill_(blank, -math.inf))


def best(scores: torch.Tensor, wanted: int, ranked: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns int64 [B, min(wanted, C)] of the best scores, best first if ``ranked``; equal scores by column.

    ``topk`` promises no order among equals, so score and column go into one integer: the bits of a float32, with
    those of a negative number turned over, order as the numbers do.

    Returns:
        The columns; and the best score that is not among them [B], -inf where all are.
    """
    width = scores.shape[1]
    bits = (scores + 0.0).view(torch.int32)
    rank = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    column = torch.arange(width - 1, -1, -1, device=scores.device)
    found = ((rank << 32) | column).topk(min(wanted + 1, width), dim=1).values
    columns = (width - 1) - (found & 0xFFFFFFFF)
    cut = F.pad(scores.gather(1, columns[:, wanted:]), (0, int(width <= wanted)), value=-math.inf).squeeze(1)
    columns = columns[:, :wanted]
    return columns if ranked else columns.sort(1).values, cut
