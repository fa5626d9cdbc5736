"""The prefix tree of one domain's semantic IDs, on flat tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recbole_gmc.errors import GMCError


@dataclass(frozen=True)
class Trie:
    """A tree of depth L, its nodes numbered breadth first, those of a level in lexicographic order of their prefixes.

    Node 0 is the root. The children of node j are the nodes ``child[j]`` to ``child[j + 1] - 1``: two small numbers a
    node, linear in the items whatever the width of the widest node. Numbers take the smallest type that holds them.

    Attributes:
        code: [nodes], the last code of each node's prefix; the root's is 0 and means nothing.
        child: [inner nodes + 1], where each inner node's children begin.
        items: [n], the row (in the given ``codes``) of each leaf, in the order of the leaves.
        start: L + 1 numbers, the first node of each level, the first leaf last but one, then the number of nodes.
        widest: per level, the most children that a node above it has.
        codebook_size: N.

    Example:
        >>> tree = Trie.build(torch.tensor([[1, 2], [0, 3], [1, 0]]), codebook_size=4)
        >>> tree.code.tolist(), tree.child.tolist(), tree.items.tolist(), tree.start
        ([0, 0, 1, 3, 0, 2], [1, 3, 4, 6], [1, 2, 0], (1, 3, 6))
    """

    code: torch.Tensor
    child: torch.Tensor
    items: torch.Tensor
    start: tuple[int, ...]
    widest: tuple[int, ...]
    codebook_size: int

    @classmethod
    def build(cls, codes: torch.Tensor | np.ndarray, codebook_size: int) -> Trie:
        """Builds the tree of ``codes`` int [n, L], each row one item's semantic ID.

        Ten million items of 4 codes take seconds and, beside the given codes, about 60 bytes an item on the way.

        Raises:
            GMCError: no items, a code outside the codebook, or two items with one ID.
        """
        codes = torch.as_tensor(codes).cpu()
        if codes.dim() != 2 or not codes.numel():
            raise GMCError(f"a prefix tree needs codes [items, levels], not shape {tuple(codes.shape)}")
        if int(codes.min()) < 0 or int(codes.max()) >= codebook_size:
            raise GMCError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit {codebook_size} codes")
        codes = codes.to(_smallest(codebook_size))
        order = _lexicographic(codes, codebook_size)
        codes = codes[order]
        begins = torch.zeros(len(codes), dtype=torch.bool)  # whether a row begins another prefix than the row before
        begins[0] = True
        nodes = torch.zeros(1, dtype=torch.long)  # the first row of each prefix of the length so far
        code, child, start, widest = [codes.new_zeros(1)], [], [1], []
        for level in range(codes.shape[1]):
            begins[1:] |= codes[1:, level] != codes[:-1, level]
            number = begins.cumsum(0, dtype=torch.int32)[nodes].long() - 1
            nodes = begins.nonzero().squeeze(1)
            child.append(number.add_(start[-1]))
            widest.append(int(torch.diff(child[-1], append=torch.tensor([start[-1] + len(nodes)])).max()))
            start.append(start[-1] + len(nodes))
            code.append(codes[nodes, level])
        if len(nodes) != len(codes):
            twin = int((~begins).nonzero()[0])
            rows = sorted((int(order[twin - 1]), int(order[twin])))
            raise GMCError(
                f"items {rows[0]} and {rows[1]} of one domain share the semantic ID {codes[twin].tolist()}",
                mend="Repair the IDs so that each is unique within its domain",
            )
        pointers = torch.cat([*child, torch.tensor(start[-1:])])
        kind = torch.int32 if start[-1] < 2**31 else torch.int64
        items = order.to(torch.int32 if len(order) < 2**31 else torch.int64)
        return cls(torch.cat(code), pointers.to(kind), items, tuple(start), tuple(widest), codebook_size)

    @property
    def levels(self) -> int:
        return len(self.start) - 1

    def __len__(self) -> int:
        return len(self.items)

    @property
    def codes(self) -> tuple[torch.Tensor, ...]:
        """Per level [nodes]: the last code of each prefix."""
        return tuple(self.code[a:b] for a, b in zip(self.start[:-1], self.start[1:], strict=True))

    @property
    def first(self) -> tuple[torch.Tensor, ...]:
        """Per level [nodes of the level above + 1]: where each parent's children begin, counted within the level."""
        above = (0, *self.start)
        return tuple(self.child[above[l] : above[l + 1] + 1] - self.start[l] for l in range(self.levels))  # noqa: E741

    def children(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first child and the number of children of inner nodes int64 [...], both int64 [...]."""
        begin = self.child[nodes].long()
        return begin, self.child[nodes + 1].long() - begin

    def item(self, leaves: torch.Tensor) -> torch.Tensor:
        """The item rows int64 [...] of leaf nodes [...]."""
        return self.items[leaves - self.start[-2]].long()

    def to(self, device: str | torch.device) -> Trie:
        tensors = (tensor.to(device) for tensor in (self.code, self.child, self.items))
        return Trie(*tensors, self.start, self.widest, self.codebook_size)

    def paths(self, level: int) -> torch.Tensor:
        """Codes int64 [nodes, level + 1] of every prefix that ends on ``level``, in the order of its nodes."""
        node = torch.arange(len(self.codes[level]), device=self.items.device)
        columns = []
        for depth in range(level, -1, -1):
            columns.append(self.codes[depth][node].long())
            node = torch.searchsorted(self.first[depth].long(), node, right=True) - 1
        return torch.stack(columns[::-1], dim=1)


def _smallest(codebook_size: int) -> torch.dtype:
    for kind, most in ((torch.uint8, 2**8), (torch.int16, 2**15), (torch.int32, 2**31)):
        if codebook_size <= most:
            return kind
    return torch.int64


def _lexicographic(codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """The order [n] that sorts rows, by one packed key a row where the codes fit into 63 bits."""
    levels = codes.shape[1]
    if codebook_size**levels < 2**63:
        key = codes[:, 0].long()
        for level in range(1, levels):
            key.mul_(codebook_size).add_(codes[:, level])
        return torch.argsort(key, stable=True)
    return torch.from_numpy(np.lexsort(codes.numpy().T[::-1]))
