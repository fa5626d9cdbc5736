"""What RecBole sees of a model over several domains: its item ids outside, rows of the catalogue inside."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.recommender import ListRecommender
from recbole_gmc.settings import DecodeSettings, read


class DomainsRecommender(SequentialRecommender):
    """A model that ranks for each user the items of the user's own domain.

    Attributes:
        label: what a reader of the results must know of the setting; empty for the method as published.
        own_settings: the model's settings classes beside the common ones.
        items: the catalogue.
    """

    label: str = ""
    own_settings: ClassVar[tuple[type, ...]] = ()

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        super().__init__(config, dataset)
        self.items = dataset.items
        self.max_items: int = config["MAX_ITEM_LIST_LENGTH"]
        self.decode = read(DecodeSettings, config)
        self.register_buffer("row_of_item", torch.from_numpy(dataset.item_rows), persistent=False)
        self.register_buffer("item_of_row", torch.from_numpy(dataset.item_ids), persistent=False)
        self.register_buffer("domain_of_row", torch.from_numpy(dataset.items.domain_of_row), persistent=False)

    @abstractmethod
    def recommender(self, domains: tuple[str, ...] | None = None) -> ListRecommender:
        """What the weights of this moment recommend, in these domains or in all."""

    @abstractmethod
    def _scored(self, recommender: Any, domain: str, history: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """What ``full_sort_predict`` knows of a domain's users.

        Returns:
            RecBole's ids of items, int64 [B, K], or [K] where all users have the same; 0 with -inf where there are
            fewer. Their scores [B, K].
        """

    def by_domain(self, domain: Tensor) -> list[tuple[str, Tensor]]:
        """The rows int64 [n] of each domain that ``domain`` [B] holds, with its name."""
        positions = domain.unique().tolist()
        return [(self.items.domains[number], (domain == number).nonzero().flatten()) for number in positions]

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """[B, items]: scores of items of the user's domain, -inf for all others (``full_sort_topk``)."""
        history, length = self._histories(interaction)
        scores = torch.full((len(history), self.n_items), -torch.inf, device=history.device)
        recommender = self.recommender()
        for domain, users in self.by_domain(self.domain_of_row[history[:, 0]]):
            items, found = self._scored(recommender, domain, history[users], length[users])
            scores[users[:, None], items] = found
        return scores

    def _histories(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        return self.row_of_item[interaction[self.ITEM_SEQ]], interaction[self.ITEM_SEQ_LEN]

    def _rows(self, interaction: Interaction) -> SequenceRows:
        history, length = self._histories(interaction)
        target = self.row_of_item[interaction[self.ITEM_ID]]
        return SequenceRows(
            history=history,
            length=length,
            target=target,
            domain=self.domain_of_row[history[:, 0]],
            user=interaction[self.USER_ID] if self.USER_ID in interaction else torch.zeros_like(target),
        )
