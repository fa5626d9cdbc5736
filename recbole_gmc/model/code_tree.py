"""Which codes may follow each prefix of a domain's semantic IDs, for a softmax among those alone."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_gmc.model.repeats import Seen


class CodeTree:
    """The children of every prefix as masks: one bit for each prefix and code of the level.

    Args:
        codes: int64 [n, L], the domain's.
        codebook_size: N.

    Example:
        >>> tree = CodeTree(torch.tensor([[1, 2], [0, 3], [1, 0]]), codebook_size=4)
        >>> tree.allowed(torch.tensor([2])).int().tolist()
        [[[1, 1, 0, 0], [1, 0, 1, 0]]]
    """

    def __init__(self, codes: Tensor, codebook_size: int) -> None:
        self._codes, self._masks, self._node, self._leaves = codes, [], [], []
        node = codes.new_zeros(len(codes))
        for level in range(codes.shape[1]):
            mask = torch.zeros(int(node.max()) + 1, codebook_size, dtype=torch.bool, device=codes.device)
            mask[node, codes[:, level]] = True
            self._masks.append(mask)
            self._node.append(node)
            node = torch.unique(node * codebook_size + codes[:, level], return_inverse=True)[1]
            self._leaves.append(torch.bincount(node))
        self._node.append(node)

    def allowed(self, items: Tensor) -> Tensor:
        """bool [T, L, N]: the codes that may stand at each level after the codes before it of ``items`` int64 [T]."""
        return torch.stack([mask[node[items]] for mask, node in zip(self._masks, self._node[:-1], strict=True)], dim=1)

    def seen(self, items: Tensor, seen: Seen) -> Tensor:
        """bool [T, L, N]: after the codes before it of ``items`` [T], codes below which a history holds all items."""
        levels, size = len(self._masks), self._masks[0].shape[1]
        found = torch.zeros(len(items), levels, size, dtype=torch.bool, device=items.device)
        for level in range(levels):
            above, below = self._node[level], self._node[level + 1]
            here = seen.exhausted(below, self._leaves[level]) & (above[seen.items] == above[items][:, None])
            row, place = here.nonzero(as_tuple=True)
            found[row, level, self._codes[seen.items[row, place], level]] = True
        return found
