"""A trained item-wise decoder that recommends: semantic IDs, text, one network a domain, and nothing of RecBole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from recbole_gmc.decode.itemwise import ItemwiseSearch
from recbole_gmc.decode.readout import Query
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.model.itemwise import ItemwiseNetwork
from recbole_gmc.recommender import ListRecommender, Ranking, State
from recbole_gmc.settings import DecodeSettings
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

ITEM_BYTES = 64  # about what one item takes of a user's share of memory in an exact search
EXACT_ITEMS = 100_000  # catalogues up to this size are searched exactly where it is left open


class MixedRecommender(ListRecommender):
    """Ranks the items of a domain by codes and dense head.

    Args:
        ids: semantic IDs of all domains.
        text: the items' embeddings, where the network reads them.
        network: its shape; its weights do not matter.
        states: domain -> plain weights, the domain's adapter merged.
        mix: domain -> weight of the dense head.
        in_table: whether the items are those that the network was trained with, which have vectors of their own.
    """

    unknown = "items without semantic IDs"

    def __init__(
        self,
        ids: SemanticIds,
        text: TextEmbeddings | None,
        network: ItemwiseNetwork,
        states: Mapping[str, State],
        mix: Mapping[str, float],
        *,
        max_items: int,
        decode: DecodeSettings,
        device: torch.device | str = "cpu",
        in_table: bool = True,
    ) -> None:
        self.items, self.max_items, self.decode, self.mix = ids.items, max_items, decode, dict(mix)
        self.device = torch.device(device)
        self.searches: dict[str, ItemwiseSearch] = {}
        for domain, state in states.items():
            own = network.holding(state)  # a copy: later training must not change what this moment's weights recommend
            rows = ids.items.rows(domain)
            codes = torch.from_numpy(np.asarray(ids.codes[rows], np.int64)).to(self.device)
            vectors = None
            if own.text is not None:
                vectors = torch.from_numpy(np.asarray(text.for_domain(domain))).to(self.device)
            place = rows if in_table else None
            self.searches[domain] = ItemwiseSearch(
                own.to(self.device), codes, vectors, place, ids.codebook_size, ids.items.domains.index(domain)
            )

    def is_exact(self, domain: str) -> bool:
        """Whether every list of the domain is the true one."""
        items = len(self.items.tokens[domain])
        return self.decode.search == "exact" or (self.decode.search == "auto" and items <= EXACT_ITEMS)

    @torch.inference_mode()
    def rank(self, domain: str, history: Tensor, length: Tensor, weight: float | None = None) -> Ranking:
        """As ``ListRecommender.rank``; ``weight`` of the dense head is the domain's own unless it is given."""
        search, wanted = self.searches[domain], self.decode.beam_size
        start, exact = self.items.rows(domain).start, self.is_exact(domain)
        weight = self.mix[domain] if weight is None else weight
        ranked = torch.full((len(history), wanted), -1, dtype=torch.int64)
        scores = torch.full(ranked.shape, -torch.inf)
        certified = torch.zeros(len(history), dtype=torch.bool)

        def search_for(users: Tensor) -> None:
            query = self._query(domain, history[users.to(history.device)], length[users.to(length.device)])
            found = search.search(query, weight, wanted, exact)
            ranked[users] = torch.where(found.items >= 0, found.items + start, -1).cpu()
            scores[users], certified[users] = found.scores.cpu(), found.certified.cpu()

        for users in torch.arange(len(history)).split(self._users_at_once(domain)):
            self.each_part(users, search_for)
        return Ranking(ranked.numpy(), scores.numpy(), certified.numpy())

    @torch.inference_mode()
    def scores(self, domain: str, history: Tensor, length: Tensor, weight: float | None = None) -> Tensor:
        """float32 [B, items of the domain]: the score of every item; arguments as for ``rank``."""
        weight = self.mix[domain] if weight is None else weight
        parts = []
        for users in torch.arange(len(history)).split(self._users_at_once(domain)):
            query = self._query(domain, history[users.to(history.device)], length[users.to(length.device)])
            parts.append(self.searches[domain].scores(query, weight))
        return torch.cat(parts)

    def _query(self, domain: str, history: Tensor, length: Tensor) -> Query:
        local = (history - self.items.rows(domain).start).clamp(min=0)
        kept = length.clamp(max=self.max_items)
        column = (length - kept)[:, None] + torch.arange(int(kept.max()), device=length.device)
        local = local.gather(1, column.clamp(max=local.shape[1] - 1))
        return self.searches[domain].query(local.to(self.device), kept.to(self.device))

    def _users_at_once(self, domain: str) -> int:
        most = (self.decode.memory_mb << 20) // (ITEM_BYTES * len(self.items.tokens[domain]))
        return min(max(most, 1), self.decode.batch_users)
