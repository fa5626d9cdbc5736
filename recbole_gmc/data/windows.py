"""A user's training sequence as a few windows, in which every position is a target once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recbole_gmc.data.rows import SequenceRows


@dataclass(frozen=True)
class Windows(SequenceRows):
    """n stretches of training sequences; the item after each of the ``fresh`` last positions is a target.

    A row is one of ``SequenceRows``: what it has as its target comes after the last item of its history.

    Attributes:
        fresh: int64 [n], 1 to ``length``.
    """

    fresh: Tensor

    @classmethod
    def of_rows(cls, rows: SequenceRows) -> Windows:
        """Windows whose targets are exactly those of ``rows``, a user's rows following each other in time.

        One window holds the user's last S items, and all of them if there are no more. Each earlier one ends S // 2
        items before the next, so a target that is not near the beginning has at least half of S items before it.
        """
        width = rows.history.shape[1]
        stride = max(1, width // 2)
        order = torch.argsort(rows.user, stable=True)
        _, counts = torch.unique_consecutive(rows.user[order], return_counts=True)
        count = counts.repeat_interleave(counts)
        from_end = counts.cumsum(0).repeat_interleave(counts) - 1 - torch.arange(len(order), device=order.device)
        windows = 1 + ((count - width + stride - 1) // stride).clamp(min=0)
        number = from_end // stride
        taken = (from_end % stride == 0) & (number < windows)
        first = number == windows - 1
        fresh = torch.where(first, count - (windows - 1) * stride, stride)
        chosen = rows.select(order[taken])
        return cls(chosen.history, chosen.length, chosen.target, chosen.domain, chosen.user, fresh[taken])

    @property
    def next_items(self) -> Tensor:
        """int64 [n, S]: the item after each position; anything past ``length``."""
        shifted = torch.cat([self.history[:, 1:], self.target[:, None]], dim=1)
        return shifted.scatter(1, self.length[:, None] - 1, self.target[:, None])

    @property
    def counted(self) -> Tensor:
        """bool [n, S]: whether the item after a position is a target."""
        position = torch.arange(self.history.shape[1], device=self.length.device)
        return (position < self.length[:, None]) & (position >= (self.length - self.fresh)[:, None])

    def thinned(self, most: float) -> Windows:
        """The windows without some of their items; a position predicts past the gaps.

        A window's share is drawn uniformly from 0 to ``most``, then each item is left out by that share, all by torch's
        generator. A window keeps its target and one item of its history. What was a target and is left stays one, if
        an item is left before it.
        """
        device = self.length.device
        position = torch.arange(self.history.shape[1], device=device)
        inside = position < self.length[:, None]
        share = most * torch.rand((len(self), 1), device=device)
        drawn = torch.rand(self.history.shape, device=device).masked_fill(~inside, -1.0)
        kept = inside & ((drawn >= share) | (drawn == drawn.amax(1, keepdim=True)))
        length = kept.sum(1)
        was_target = kept & (position > (self.length - self.fresh)[:, None])
        order = torch.argsort((~kept).long(), dim=1, stable=True)
        history = self.history.gather(1, order).masked_fill(position >= length[:, None], -1)
        fresh = torch.minimum(was_target.sum(1) + 1, length)
        return replace(self, history=history, length=length, fresh=fresh)
