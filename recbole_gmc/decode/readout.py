"""The read-out of codes as plain tensors: log-probabilities of the codes after any prefix, many prefixes at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_gmc.decode.soundness import refuse_broken
from recbole_gmc.decode.trie import Trie
from recbole_gmc.model.itemwise import ItemwiseNetwork
from recbole_gmc.model.repeats import Seen

BLOCK_BYTES = 8 << 20  # what the logits of one block of prefixes may take: fits into a processor's cache


@dataclass(frozen=True)
class Frontier:
    """P prefixes of one depth, sorted by user and then by node; an item's code path is one of full depth.

    Attributes:
        users: int64 [P].
        nodes: int64 [P], in the tree.
        scores: float32 [P], log-probabilities of the prefixes.
    """

    users: Tensor
    nodes: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.users)

    def select(self, index: Tensor) -> Frontier:
        return Frontier(self.users[index], self.nodes[index], self.scores[index])


@dataclass(frozen=True)
class Query:
    """What lists are asked for: states float32 [B, d], and what their histories hold already, where that counts.

    Attributes:
        seen: the items.
        nodes: per depth bool [B, nodes], whether all items below a node are such.
    """

    states: Tensor
    seen: Seen | None = None
    nodes: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.states)

    def select(self, users: Tensor) -> Query:
        seen = None if self.seen is None else self.seen.select(users)
        return Query(self.states[users], seen, tuple(table[users] for table in self.nodes))


@dataclass(frozen=True)
class Level:
    """The weights of one level, so arranged that state and codes enter apart.

    ``logits = states @ table' + relu(states @ wi' + bi + sum of the earlier codes' ``paths``) @ out' + shift``

    Attributes:
        table: [N, d].
        wi: [m, d], bi: [m].
        paths: one [N, m] for each earlier level.
        out: [N, m], shift: [N].
    """

    table: Tensor
    wi: Tensor
    bi: Tensor
    paths: tuple[Tensor, ...]
    out: Tensor
    shift: Tensor


class CodeReadOut:
    """Scores the prefixes of one tree for given states.

    Args:
        network: only read; its numbers are those of ``ItemwiseNetwork.level_logits`` in evaluation mode. Its setting
            ``rank_softmax`` says among which codes each is normalised: ``table``, all of its level as a T5's tokens
            are, or ``tree``, those that follow its prefix in the tree. Then the items' probabilities sum to one, and
            a code that stands alone costs nothing.
        trie: the domain's prefix tree.
        repeats: what is added to the logit of a code below which a history holds all items.
    """

    def __init__(self, network: ItemwiseNetwork, trie: Trie, repeats: float = 0.0) -> None:
        self.repeats = repeats
        tables = network.tables.detach().float()
        self.trie, self.among_tree = trie.to(tables.device), network.settings.rank_softmax == "tree"
        self.levels = []
        for number, (table, readout) in enumerate(zip(tables, network.readouts, strict=True)):
            wi, wo = readout.wi.weight.detach().float(), readout.wo.weight.detach().float()
            paths = tuple(earlier @ wi.T for earlier in tables[:number])
            bi, shift = readout.wi.bias.detach().float(), table @ readout.wo.bias.detach().float()
            self.levels.append(Level(table, wi, bi, paths, table @ wo, shift))
        # The code path of every node, so that a prefix finds its codes wherever it stands.
        self._codes = [self.trie.paths(depth) for depth in range(self.trie.levels - 1)]

    def root(self, users: int) -> Frontier:
        """One empty prefix a user."""
        device = self.trie.items.device
        blank = torch.zeros(users, dtype=torch.long, device=device)
        return Frontier(torch.arange(users, device=device), blank, torch.zeros(users, device=device))

    def expand(self, query: Query, frontier: Frontier, depth: int) -> Frontier:
        """All children of prefixes of ``depth`` codes.

        Raises:
            GMCError: the network's output is not a number.
        """
        begin, count = self.trie.children(frontier.nodes)
        parent = _repeated(count)
        nodes = begin[parent] + torch.arange(len(parent), device=count.device) - (count.cumsum(0) - count)[parent]
        scores = frontier.scores[parent]
        asked = count > 1 if self.among_tree else count > 0
        places = asked[parent].nonzero().squeeze(1)
        among = frontier.select(asked.nonzero().squeeze(1))
        above = _repeated(count[asked])
        scores[places] += self._steps(query, among, depth, above, nodes[places])
        refuse_broken(scores.isnan())
        return Frontier(frontier.users[parent], nodes, scores)

    def _steps(self, query: Query, asked: Frontier, depth: int, parent: Tensor, nodes: Tensor) -> Tensor:
        """[C]: log-probabilities of ``nodes`` [C] after the prefixes that ``parent`` [C], ascending, names."""
        level = self.levels[depth]
        hidden = torch.addmm(level.bi, query.states, level.wi.T)
        base = torch.addmm(level.shift, query.states, level.table.T)
        codes, found = self.trie.code[nodes].long(), torch.empty(len(nodes), device=base.device)
        step = max(1, BLOCK_BYTES // (4 * (level.out.shape[0] + level.out.shape[1])))
        for first in range(0, len(asked), step):
            part = slice(first, min(first + step, len(asked)))
            users, inner = asked.users[part], hidden[asked.users[part]]
            for earlier, path in enumerate(level.paths):
                inner += path[self._path(asked.nodes[part], depth)[:, earlier]]
            logits = torch.addmm(base[users], inner.relu_(), level.out.T)
            bounds = torch.searchsorted(parent, torch.tensor([part.start, part.stop], device=parent.device))
            mine = slice(*bounds.tolist())
            above = parent[mine] - part.start
            chosen = logits[above, codes[mine]]
            if query.nodes:
                chosen += self.repeats * query.nodes[depth][users[above], nodes[mine] - self.trie.start[depth]]
            if self.among_tree:
                logits.fill_(-torch.inf)
            found[mine] = chosen - logits.index_put_((above, codes[mine]), chosen).logsumexp(1)[above]
        return found

    def _path(self, nodes: Tensor, depth: int) -> Tensor:
        """int64 [P, depth]: the codes of nodes that stand at ``depth`` > 0."""
        return self._codes[depth - 1][nodes - self.trie.start[depth - 1]]


def _repeated(count: Tensor) -> Tensor:
    """Each place of ``count`` [P] as often as it says, ascending."""
    return torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
