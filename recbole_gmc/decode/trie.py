"""The prefix tree of one domain's semantic IDs, on flat tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recbole_gmc.errors import GMCError


@dataclass(frozen=True)
class Trie:
    """A tree of depth L whose nodes of one level stand in lexicographic order of their prefixes.

    So the children of node j of level l are the nodes ``first[l + 1][j]`` to ``first[l + 1][j + 1] - 1`` of the next
    level: two numbers a node, linear in the items whatever the width of the widest node. Level 0 hangs on one root.

    Attributes:
        codes: per level, int64 [nodes]: the last code of each prefix.
        first: per level, int64 [nodes of the level above + 1]: where each parent's children begin.
        items: int64 [n], the row (in the given ``codes``) of each leaf.
        codebook_size: N.

    Example:
        >>> tree = Trie.build(torch.tensor([[1, 2], [0, 3], [1, 0]]), codebook_size=4)
        >>> [c.tolist() for c in tree.codes], [f.tolist() for f in tree.first], tree.items.tolist()
        ([[0, 1], [3, 0, 2]], [[0, 2], [0, 1, 3]], [1, 2, 0])
    """

    codes: tuple[torch.Tensor, ...]
    first: tuple[torch.Tensor, ...]
    items: torch.Tensor
    codebook_size: int

    @classmethod
    def build(cls, codes: torch.Tensor | np.ndarray, codebook_size: int) -> Trie:
        """Builds the tree of ``codes`` int [n, L], each row one item's semantic ID.

        Raises:
            GMCError: no items, a code outside the codebook, or two items with one ID.
        """
        codes = torch.as_tensor(codes).long().cpu()
        if codes.dim() != 2 or not codes.numel():
            raise GMCError(f"a prefix tree needs codes [items, levels], not shape {tuple(codes.shape)}")
        if int(codes.min()) < 0 or int(codes.max()) >= codebook_size:
            raise GMCError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit {codebook_size} codes")
        order = _lexicographic(codes, codebook_size)
        codes = codes[order]
        starts = torch.ones(len(codes), dtype=torch.bool)  # where a prefix of the length so far begins
        starts[1:] = False
        parents = starts.nonzero().squeeze(1)[:1]
        per_level, first = [], []
        for level in range(codes.shape[1]):
            starts[1:] |= codes[1:, level] != codes[:-1, level]
            nodes = starts.nonzero().squeeze(1)
            first.append(torch.cat([torch.searchsorted(nodes, parents), torch.tensor([len(nodes)])]))
            per_level.append(codes[nodes, level])
            parents = nodes
        if len(parents) != len(codes):
            twin = int((~starts).nonzero()[0])
            rows = sorted((int(order[twin - 1]), int(order[twin])))
            raise GMCError(
                f"items {rows[0]} and {rows[1]} of one domain share the semantic ID {codes[twin].tolist()}",
                mend="Repair the IDs so that each is unique within its domain",
            )
        return cls(tuple(per_level), tuple(first), order, codebook_size)

    @property
    def levels(self) -> int:
        return len(self.codes)

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: str | torch.device) -> Trie:
        return Trie(
            tuple(c.to(device) for c in self.codes),
            tuple(f.to(device) for f in self.first),
            self.items.to(device),
            self.codebook_size,
        )

    def paths(self, level: int) -> torch.Tensor:
        """Codes int64 [nodes, level + 1] of every prefix that ends on ``level``, in the order of its nodes."""
        node = torch.arange(len(self.codes[level]), device=self.items.device)
        columns = []
        for depth in range(level, -1, -1):
            columns.append(self.codes[depth][node])
            node = torch.searchsorted(self.first[depth], node, right=True) - 1
        return torch.stack(columns[::-1], dim=1)


def _lexicographic(codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """The order [n] that sorts rows, by one packed key a row where the codes fit into 63 bits."""
    levels = codes.shape[1]
    if codebook_size**levels < 2**63:
        key = codes[:, 0].clone()
        for level in range(1, levels):
            key.mul_(codebook_size).add_(codes[:, level])
        return torch.argsort(key, stable=True)
    return torch.from_numpy(np.lexsort(codes.numpy().T[::-1]))
