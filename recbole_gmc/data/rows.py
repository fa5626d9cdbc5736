"""The rows of a split as tensors that know nothing of RecBole's ids."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recbole_gmc.data.domains import GMCDataset


@dataclass(frozen=True)
class SequenceRows:
    """n histories with the item that came next. All tensors are int64.

    Attributes:
        history: [n, S], rows of the ``ItemIndex``, oldest first, -1 past ``length``.
        length: [n], items in each history, at least 1.
        target: [n], row of the ``ItemIndex``.
        domain: [n], position of the domain.
        user: [n], RecBole's user id.
    """

    history: Tensor
    length: Tensor
    target: Tensor
    domain: Tensor
    user: Tensor

    @classmethod
    def of(cls, split: GMCDataset) -> SequenceRows:
        """The rows of a train, valid or test copy that ``GMCDataset.build`` made, in its order."""
        rows, domains = torch.from_numpy(split.item_rows), torch.from_numpy(split.user_domains)
        data = split.inter_feat
        user = data[split.uid_field]
        return cls(
            history=rows[data[split.iid_field + split.config["LIST_SUFFIX"]]],
            length=data[split.item_list_length_field],
            target=rows[data[split.iid_field]],
            domain=domains[user],
            user=user,
        )

    def __len__(self) -> int:
        return len(self.target)

    def select(self, index: Tensor) -> SequenceRows:
        """The rows at ``index`` (positions int64 or a mask bool [n])."""
        return type(self)(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def of_domain(self, domain: int) -> SequenceRows:
        """The rows of the domain at position ``domain``."""
        return self.select(self.domain == domain)

    def last_prefixes(self, n: int) -> SequenceRows:
        """At most the last n rows of each user (a user's rows are in time order), in the order they are in."""
        return self.select(last_of_each(self.user, n))

    def to(self, device: torch.device | str) -> SequenceRows:
        return type(self)(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


def last_of_each(user: Tensor, n: int) -> Tensor:
    """bool like ``user`` [rows]: whether a row is among the last n of its user."""
    order = torch.argsort(user, stable=True)
    _, counts = torch.unique_consecutive(user[order], return_counts=True)
    end = counts.cumsum(0).repeat_interleave(counts)
    keep = torch.zeros(len(user), dtype=torch.bool, device=user.device)
    keep[order] = end - torch.arange(len(user), device=end.device) <= n
    return keep
