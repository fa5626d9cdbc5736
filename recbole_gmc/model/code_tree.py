"""Which codes may follow each prefix of a domain's semantic IDs, for a softmax among those alone."""

from __future__ import annotations

import torch
from torch import Tensor


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
        self._masks, self._node = [], []
        node = codes.new_zeros(len(codes))
        for level in range(codes.shape[1]):
            mask = torch.zeros(int(node.max()) + 1, codebook_size, dtype=torch.bool, device=codes.device)
            mask[node, codes[:, level]] = True
            self._masks.append(mask)
            self._node.append(node)
            node = torch.unique(node * codebook_size + codes[:, level], return_inverse=True)[1]

    def allowed(self, items: Tensor) -> Tensor:
        """bool [T, L, N]: the codes that may stand at each level after the codes before it of ``items`` int64 [T]."""
        return torch.stack([mask[node[items]] for mask, node in zip(self._masks, self._node, strict=True)], dim=1)
