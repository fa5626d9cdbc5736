"""Exact top-K: beam search, and for users whose list it cannot certify a best-first search that goes on from there.

A prefix's score bounds the scores of all items below it, because log-probabilities only fall along a path. So every
prefix that was cut off waits in a queue, the best are expanded first, and a user is done when none that waits can
still beat the last item of the list. What is expanded is what any exact search must look at, but for those that were
let in before the list was as good as it became.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from recbole_gmc.decode.beam import BeamResult, Beams, BeamSearch, Trace, best
from recbole_gmc.decode.network import Memory
from recbole_gmc.decode.soundness import refuse_broken

ROWS = 640  # prefixes expanded at once, over all users: enough for the matrix products to be worth their calls


@dataclass(frozen=True)
class _Queue:
    """Prefixes that wait, Q a user: node, score (-inf: none), and the places of their ancestors.

    ``lineage`` int64 [u, Q, L] holds ``depth`` [u, Q] places, then zeros.
    """

    nodes: torch.Tensor
    scores: torch.Tensor
    depth: torch.Tensor
    lineage: torch.Tensor

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.nodes, self.scores, self.depth, self.lineage))

    def take(self, columns: torch.Tensor) -> _Queue:
        wide = columns[..., None].expand(-1, -1, self.lineage.shape[2])
        parts = (tensor.gather(1, columns) for tensor in (self.nodes, self.scores, self.depth))
        return _Queue(*parts, self.lineage.gather(1, wide))

    def at_least(self, floor: torch.Tensor) -> _Queue:
        """Those with scores of ``floor`` [u] or more, best first, in as many columns as the longest queue needs."""
        scores = torch.where(self.scores >= floor[:, None], self.scores, -math.inf)
        longest = int((scores > -math.inf).sum(1).max())
        return replace(self, scores=scores).take(best(scores, longest)[0])

    def join(self, other: _Queue) -> _Queue:
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("nodes", "scores", "depth", "lineage"))
        return _Queue(*(torch.cat(pair, dim=1) for pair in pairs))

    def of(self, users: torch.Tensor) -> _Queue:
        return _Queue(self.nodes[users], self.scores[users], self.depth[users], self.lineage[users])


@dataclass(frozen=True)
class _State:
    """The users still searched: their positions in the batch [u], memory, queue, and lists [u, K] so far."""

    users: torch.Tensor
    memory: Memory
    queue: _Queue
    leaves: torch.Tensor
    scores: torch.Tensor

    def of(self, users: torch.Tensor) -> _State:
        return _State(
            self.users[users], self.memory.of(users), self.queue.of(users), self.leaves[users], self.scores[users]
        )


@torch.no_grad()
def search_exact(
    search: BeamSearch, input_ids: torch.Tensor, mask: torch.Tensor, most_bytes: float = math.inf
) -> BeamResult:
    """The true top-K of every user, K = ``search.beam_size``.

    Args:
        input_ids, mask: histories as for ``BeamSearch.search``.
        most_bytes: what expanded and waiting prefixes may take, beyond what beam search took. Users who need more get
            the best lists found, uncertified; only a model that knows next to nothing needs as much.

    Raises:
        GMCError: the network's output is not a number.
    """
    wanted = search.beam_size
    result, trace = search.trace(input_ids, mask, keep=True)
    users = (~result.certified).nonzero().squeeze(1)
    if not len(users):
        return result
    items, scores, certified = result.items.clone(), result.scores.clone(), result.certified.clone()
    state = _begin(search, trace, wanted, users)
    while len(state.users):
        waiting = (state.queue.scores > -math.inf).any(1)
        done = ~waiting
        width = _width(search, state)
        room = _room(state, width, most_bytes)
        full = room < state.memory.used + width
        if full or int(waiting.sum()) <= len(waiting) // 2:
            leave = torch.ones_like(done) if full else done
            found = search.result(state.leaves[leave], state.scores[leave], wanted)
            places = state.users[leave]
            items[places], scores[places], certified[places] = found.items, found.scores, done[leave]
            state = state.of((~leave).nonzero().squeeze(1))
        else:
            state.memory.grow(room)
            state = _expand(search, state, width)
    return BeamResult(items, scores, certified)


def _begin(search: BeamSearch, trace: Trace, wanted: int, users: torch.Tensor) -> _State:
    """What beam search cut off and could still matter becomes the queue."""
    short = wanted - trace.leaves.shape[1]
    leaves = F.pad(trace.leaves[users], (0, short), value=-1)
    scores = F.pad(trace.scores[users], (0, short), value=-math.inf)
    floor = scores[:, -1] - search.rounding
    queue = None
    for children, lineage in trace.cut:
        columns = torch.arange(children.nodes.shape[1], device=leaves.device).expand(len(leaves), -1)
        prefixes = children.of(users).beams(columns, lineage[users])
        part = _queue(prefixes, search.trie.levels, lineage.shape[2]).at_least(floor)
        queue = part if queue is None else queue.join(part)
    return _State(users, trace.memory.of(users), queue.at_least(floor), leaves, scores)


def _queue(prefixes: Beams, levels: int, depth: int | torch.Tensor) -> _Queue:
    lineage = F.pad(prefixes.lineage, (0, levels - prefixes.lineage.shape[2]))
    depth = depth if isinstance(depth, torch.Tensor) else torch.full_like(prefixes.nodes, depth)
    return _Queue(prefixes.nodes, prefixes.scores, depth, lineage)


def _width(search: BeamSearch, state: _State) -> int:
    """Prefixes of each queue that are expanded at once."""
    return min(max(search.beam_size, ROWS // len(state.users)), state.queue.nodes.shape[1])


def _room(state: _State, width: int, most_bytes: float) -> int:
    """Places for expanded prefixes: twice as many as ``width`` more need, or what ``most_bytes`` leaves for them."""
    memory, needed = state.memory, state.memory.used + width
    if needed <= memory.room:
        return memory.room
    left = most_bytes - state.queue.bytes
    return 2 * needed if left == math.inf else min(2 * needed, int(left // memory.place_bytes))


def _expand(search: BeamSearch, state: _State, width: int) -> _State:
    """One step of the network over the ``width`` best prefixes of every queue."""
    trie, queue, memory = search.trie, state.queue, state.memory
    columns = torch.arange(width, device=queue.nodes.device).expand(len(state.users), -1)  # the queue is best first
    chosen, rest = queue.take(columns), replace(queue, scores=queue.scores.scatter(1, columns, -math.inf))

    place = torch.arange(memory.used, memory.used + width, device=columns.device).expand(len(columns), -1)
    lineage = chosen.lineage.scatter(2, chosen.depth[..., None], place[..., None])
    distance = chosen.depth[..., None] - torch.arange(trie.levels, device=columns.device)
    bias = search.network.lineage_bias(distance.clamp(min=0)).masked_fill(distance < 0, -math.inf)
    offsets = torch.tensor(
        [search.vocabulary.level(level).start for level in range(trie.levels)], device=columns.device
    )
    tokens = offsets[chosen.depth - 1] + trie.code[chosen.nodes]
    log_probs = search.network.step(tokens, memory, lineage, bias)
    refuse_broken(log_probs[..., 0].isnan())
    codes = torch.arange(trie.codebook_size, device=columns.device)
    log_probs = log_probs.gather(2, offsets[chosen.depth][..., None] + codes)
    children = search.children(Beams(chosen.nodes, chosen.scores, lineage), log_probs, max(trie.widest))

    leaf = children.nodes >= trie.start[-2]
    leaves, scores = _merge(search, state, children.nodes, children.scores.masked_fill(~leaf, -math.inf))
    floor = scores[:, -1] - search.rounding
    inner = replace(children, scores=children.scores.masked_fill(leaf, -math.inf))
    columns = torch.arange(children.nodes.shape[1], device=columns.device).expand(len(columns), -1)
    depth = (chosen.depth.gather(1, children.parents) + 1).clamp(max=trie.levels - 1)  # leaves never wait
    deeper = _queue(inner.beams(columns, lineage), trie.levels, depth)
    queue = rest.join(deeper.at_least(floor)).at_least(floor)
    return replace(state, queue=queue, leaves=leaves, scores=scores)


def _merge(
    search: BeamSearch, state: _State, nodes: torch.Tensor, scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lists [u, K] with better leaves [u, C] let in; equal scores in the order of the leaves."""
    floor = state.scores[:, -1:]
    scores = torch.where(scores >= floor, scores, -math.inf)
    columns = best(scores, int((scores > -math.inf).sum(1).max()))[0]
    found = torch.where(scores.gather(1, columns) > -math.inf, nodes.gather(1, columns), -1)
    nodes = torch.cat([state.leaves, found], dim=1)
    scores = torch.cat([state.scores, scores.gather(1, columns)], dim=1)
    order = nodes.argsort(1)
    columns = order.gather(1, best(scores.gather(1, order), search.beam_size)[0])
    return nodes.gather(1, columns), scores.gather(1, columns)
