"""Items that a history already holds: which they are, what the tree says of them, and what they score.

Whether people take an item twice is a fact of a domain: of groceries they do, of films they do not. A network of states
and item vectors can hardly say so, as the state lies near the items that it was made of. Two learned numbers a domain
say it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SCALE = 100.0  # to rule repeats out takes a logit of some -15, and Adam moves a weight by at most its rate a step


class Repeats(nn.Module):
    """What is added to the score of an item that stands in the history, learned for each domain.

    One number is for the logit of such an item in the dense head, one for that of a code below which the history holds
    all items. Both start at zero.
    """

    def __init__(self, domains: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(domains, 2))

    def of_items(self, domain: int) -> Tensor:
        """For the logit of an item in the dense head, []."""
        return SCALE * self.bias[domain, 0]

    def of_codes(self, domain: int) -> Tensor:
        """For the logit of a code, []."""
        return SCALE * self.bias[domain, 1]


@dataclass(frozen=True)
class Seen:
    """The items of T histories.

    Attributes:
        items: int64 [T, S], rows of one domain's items; anything where not ``counted``.
        counted: bool [T, S], the first place of each item.
    """

    items: Tensor
    counted: Tensor

    @classmethod
    def of(cls, history: Tensor, length: Tensor) -> Seen:
        """Of histories int64 [T, S], oldest first, and how many of their items count, int64 [T]."""
        inside = torch.arange(history.shape[1], device=history.device) < length[:, None]
        same = history[:, :, None] == history[:, None, :]
        earlier = torch.ones(same.shape[1:], dtype=torch.bool, device=history.device).tril(-1)
        return cls(history, inside & ~(same & earlier).any(2))

    def select(self, rows: Tensor) -> Seen:
        return Seen(self.items[rows], self.counted[rows])

    def added_to(self, logits: Tensor, bias: Tensor) -> Tensor:
        """[T, n]: ``logits`` [T, n] of the domain's items, those of the histories changed by ``bias``, a number."""
        row, place = self.counted.nonzero(as_tuple=True)
        added = bias.to(logits.dtype).expand(len(row))
        return logits.index_put((row, self.items[row, place]), added, accumulate=True)

    def exhausted(self, node: Tensor, leaves: Tensor) -> Tensor:
        """bool [T, S]: the places whose node has no item below it but those of the history.

        Args:
            node: int64 [n], the node above each item, all of one depth.
            leaves: int64 [nodes], the items below each node.
        """
        nodes = node[self.items]
        held = ((nodes[:, :, None] == nodes[:, None, :]) & self.counted[:, None, :]).sum(2)
        return self.counted & (held == leaves[nodes])
