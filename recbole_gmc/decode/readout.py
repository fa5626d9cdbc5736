"""The read-out of codes as plain tensors: log-probabilities of the codes after any prefix, many prefixes at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_gmc.decode.trie import Trie
from recbole_gmc.errors import GMCError
from recbole_gmc.model.itemwise import ItemwiseNetwork

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
        network: only read; its numbers are those of ``ItemwiseNetwork.level_logits`` in evaluation mode.
        trie: the domain's prefix tree.
    """

    def __init__(self, network: ItemwiseNetwork, trie: Trie) -> None:
        tables = network.tables.detach().float()
        self.trie = trie.to(tables.device)
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

    def expand(self, states: Tensor, frontier: Frontier, depth: int) -> Frontier:
        """All children of prefixes of ``depth`` codes.

        Codes are normalised over the level's whole table, as a T5's tokens are, not over a node's children.

        Args:
            states: float32 [B, d].

        Raises:
            GMCError: the network's output is not a number.
        """
        level = self.levels[depth]
        hidden = torch.addmm(level.bi, states, level.wi.T)
        base = torch.addmm(level.shift, states, level.table.T)
        begin, count = self.trie.children(frontier.nodes)
        end = count.cumsum(0)
        bounds = torch.cat([end.new_zeros(1), end])
        parent = torch.repeat_interleave(torch.arange(len(frontier), device=end.device), count)
        nodes = begin[parent] + torch.arange(len(parent), device=end.device) - bounds[parent]
        codes, scores = self.trie.code[nodes].long(), torch.empty(len(parent), device=states.device)
        step = max(1, BLOCK_BYTES // (4 * (level.out.shape[0] + level.out.shape[1])))
        for first in range(0, len(frontier), step):
            part = slice(first, min(first + step, len(frontier)))
            users = frontier.users[part]
            inner = hidden[users]
            for earlier, path in enumerate(level.paths):
                inner += path[self._path(frontier.nodes[part], depth)[:, earlier]]
            logits = torch.addmm(base[users], inner.relu_(), level.out.T)
            rest = frontier.scores[part] - logits.logsumexp(1)
            mine = slice(int(bounds[part.start]), int(bounds[part.stop]))
            above = parent[mine] - part.start
            scores[mine] = logits[above, codes[mine]] + rest[above]
        if bool(scores.isnan().any()):
            raise GMCError(
                "the recommender's output is not a number",
                mend="Its weights are damaged or training diverged; go back to an earlier checkpoint or lower the "
                "learning rate",
            )
        return Frontier(frontier.users[parent], nodes, scores)

    def _path(self, nodes: Tensor, depth: int) -> Tensor:
        """int64 [P, depth]: the codes of nodes that stand at ``depth`` > 0."""
        return self._codes[depth - 1][nodes - self.trie.start[depth - 1]]
