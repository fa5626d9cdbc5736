"""The best items of a domain by a mix of two log-probabilities: of an item's codes, and of the item by a dense head.

``score = (1 - w) * log p(codes) + w * log p(item)``. A prefix's score bounds those of the items below it, because
log-probabilities only fall along a path; so does the prefix's share plus the best dense share below it. Beam search
keeps the prefixes of highest bound, and the bounds it cut off certify its list. The exact search then looks at every
prefix whose bound reaches the last item of that list, of all users at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_gmc.decode.beam import BeamResult, best
from recbole_gmc.decode.readout import CodeReadOut, Frontier, Query
from recbole_gmc.decode.soundness import refuse_broken
from recbole_gmc.decode.trie import Trie
from recbole_gmc.model.itemwise import ItemwiseNetwork
from recbole_gmc.model.repeats import Seen

ROUNDING = 1e-4  # what sums of log-probabilities may differ by from one batch shape to another


@dataclass(frozen=True)
class _Bounds:
    """What is still to come below each node: per depth [B, nodes], the best dense share; ``None`` without any."""

    below: list[Tensor] | None
    start: tuple[int, ...]
    weight: float

    def of(self, frontier: Frontier, depth: int) -> Tensor:
        """[P]: no item below a prefix of ``depth`` codes scores more; an item's own score at the last depth."""
        scores = (1 - self.weight) * frontier.scores
        if self.below is None:
            return scores
        return scores + self.below[depth - 1][frontier.users, frontier.nodes - self.start[depth - 1]]


class ItemwiseSearch:
    """Ranks one domain's items with one set of weights; equal scores in the order of the semantic IDs.

    Args:
        network: plain weights, adapters merged.
        codes: int64 [n, L], the domain's.
        text: [n, D], where the network reads text.
        rows: where the domain's items stand in the item table, ``None`` for items that are not in it.
        codebook_size: N.
        domain: its number, for what the network has learned of it alone.
    """

    def __init__(
        self,
        network: ItemwiseNetwork,
        codes: Tensor,
        text: Tensor | None,
        rows: slice | None,
        codebook_size: int,
        domain: int = 0,
    ) -> None:
        self.network = network
        with torch.no_grad():
            self.vectors = network.items(codes, text, rows).float()
        self.trie = Trie.build(codes, codebook_size).to(self.vectors.device)
        repeats = network.repeats
        self._repeats = None if repeats is None else repeats.of_items(domain).detach().float()
        of_codes = 0.0 if repeats is None else repeats.of_codes(domain).item()
        self.readout = CodeReadOut(network, self.trie, of_codes)
        self._leaf = torch.empty_like(self.trie.items, dtype=torch.long)
        self._leaf[self.trie.items.long()] = torch.arange(len(self.trie), device=self._leaf.device)
        self._above = self._ancestors()
        # per depth: the node above each item, and the items below each node
        self._tree = [(above[self._leaf], torch.bincount(above)) for above in self._above]

    def _ancestors(self) -> list[Tensor]:
        """Per depth 1 to L: the node above each leaf, int64 [n], counted within its level; the last is the leaf."""
        found = [torch.arange(len(self.trie), device=self._leaf.device)]
        for depth in range(self.trie.levels - 1, 0, -1):
            found.append(torch.searchsorted(self.trie.first[depth].long(), found[-1], right=True) - 1)
        return found[::-1]

    # ---- scores --------------------------------------------------------------------------------------------------

    def query(self, history: Tensor, length: Tensor) -> Query:
        """For histories int64 [B, S] of the domain's own rows; anything past ``length``."""
        states = self.network.last_states(self.vectors, history, length).float()
        if self._repeats is None:
            return Query(states)
        seen, nodes = Seen.of(history, length), []
        for node, leaves in self._tree:
            row, place = seen.exhausted(node, leaves).nonzero(as_tuple=True)
            table = torch.zeros(len(history), len(leaves), dtype=torch.bool, device=leaves.device)
            nodes.append(table.index_put_((row, node[history[row, place]]), torch.ones_like(row, dtype=torch.bool)))
        return Query(states, seen, tuple(nodes))

    def dense(self, query: Query) -> Tensor:
        """[B, n]: log-probabilities of the domain's items by the dense head.

        Raises:
            GMCError: the network's output is not a number.
        """
        logits = query.states @ self.vectors.T
        refuse_broken(logits.isnan())
        return (logits if query.seen is None else query.seen.added_to(logits, self._repeats)).log_softmax(1)

    def codes(self, query: Query) -> Tensor:
        """[B, n]: log-probabilities of the code path of every item, with nothing pruned."""
        frontier = self.readout.root(len(query))
        for depth in range(self.trie.levels):
            frontier = self.readout.expand(query, frontier, depth)
        return frontier.scores.view(len(query), -1)[:, self._leaf]

    def scores(self, query: Query, weight: float) -> Tensor:
        """[B, n]: the mix of both for every item."""
        if weight == 0:
            return self.codes(query)
        if weight == 1:
            return self.dense(query)
        return (1 - weight) * self.codes(query) + weight * self.dense(query)

    # ---- lists ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def search(self, query: Query, weight: float, wanted: int, exact: bool) -> BeamResult:
        """The best ``wanted`` items for B users.

        Args:
            weight: of the dense head, 0 to 1.
            exact: goes on where the beam's list is not provably the true one.
        """
        if weight == 1:
            return self._dense_list(query, wanted)
        bounds = _Bounds(self._below(query, weight), self.trie.start, weight)
        found = self._beam(query, bounds, wanted)
        users = (~found.certified).nonzero().squeeze(1)
        if not exact or not len(users):
            return found
        floor = found.scores[users, -1] - ROUNDING
        some = None if bounds.below is None else [below[users] for below in bounds.below]
        sure = self._above_floor(query.select(users), _Bounds(some, bounds.start, weight), wanted, floor)
        items, scores = found.items.index_copy(0, users, sure.items), found.scores.index_copy(0, users, sure.scores)
        return BeamResult(items, scores, torch.ones_like(found.certified))

    def _below(self, query: Query, weight: float) -> list[Tensor] | None:
        if weight == 0:
            return None
        leaves = weight * self.dense(query)[:, self.trie.items.long()]
        found = []
        for depth, above in enumerate(self._above[:-1]):
            nodes = self.trie.start[depth + 1] - self.trie.start[depth]
            blank = leaves.new_full((len(leaves), nodes), -torch.inf)
            found.append(blank.scatter_reduce(1, above.expand(len(leaves), -1), leaves, "amax"))
        return [*found, leaves]

    def _beam(self, query: Query, bounds: _Bounds, wanted: int) -> BeamResult:
        frontier = self.readout.root(len(query))
        cut = torch.full((len(query),), -torch.inf, device=query.states.device)
        for depth in range(1, self.trie.levels):
            frontier = self.readout.expand(query, frontier, depth - 1)
            frontier, lost = self._keep(frontier, bounds.of(frontier, depth), len(query), wanted)
            cut = torch.maximum(cut, lost)
        found = self._leaves(query, frontier, bounds, wanted)
        certified = (cut == -torch.inf) | (cut < found.scores[:, -1] - ROUNDING)
        return BeamResult(found.items, found.scores, certified)

    def _above_floor(self, query: Query, bounds: _Bounds, wanted: int, floor: Tensor) -> BeamResult:
        """All prefixes whose bound is at least the user's ``floor`` [B]."""
        frontier = self.readout.root(len(query))
        for depth in range(1, self.trie.levels):
            frontier = self.readout.expand(query, frontier, depth - 1)
            kept = bounds.of(frontier, depth) >= floor[frontier.users]
            frontier = frontier.select(kept.nonzero().squeeze(1))
        return self._leaves(query, frontier, bounds, wanted)

    def _leaves(self, query: Query, frontier: Frontier, bounds: _Bounds, wanted: int) -> BeamResult:
        depth = self.trie.levels
        leaves = self.readout.expand(query, frontier, depth - 1)
        columns, values, _ = _best(leaves, bounds.of(leaves, depth), len(query), wanted, ranked=True)
        items = self.trie.item(leaves.nodes[columns]).masked_fill_(values == -torch.inf, -1)
        return _lists(items, values, wanted)

    def _dense_list(self, query: Query, wanted: int) -> BeamResult:
        order = self.trie.items.long()
        dense = self.dense(query)[:, order]
        columns = best(dense, wanted)[0]
        return _lists(order[columns], dense.gather(1, columns), wanted)

    def _keep(self, frontier: Frontier, values: Tensor, users: int, wanted: int) -> tuple[Frontier, Tensor]:
        columns, kept, cut = _best(frontier, values, users, wanted, ranked=False)
        return frontier.select(columns[kept > -torch.inf]), cut


def _best(frontier: Frontier, values: Tensor, users: int, wanted: int, ranked: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Each user's best prefixes by ``values`` [P]: their places in the frontier, their values, the best one cut off."""
    counts = torch.bincount(frontier.users, minlength=users)
    begin = counts.cumsum(0) - counts
    table = values.new_full((users, int(counts.max())), -torch.inf)
    table[frontier.users, torch.arange(len(frontier), device=values.device) - begin[frontier.users]] = values
    columns, cut = best(table, wanted, ranked)
    values = table.gather(1, columns)
    return (begin[:, None] + columns).clamp(max=len(frontier) - 1), values, cut


def _lists(items: Tensor, scores: Tensor, wanted: int) -> BeamResult:
    """Lists of exactly ``wanted`` places, those past the catalogue empty; all of them certified."""
    short = wanted - items.shape[1]
    sure = torch.ones(len(items), dtype=torch.bool, device=items.device)
    return BeamResult(F.pad(items, (0, short), value=-1), F.pad(scores, (0, short), value=-torch.inf), sure)
