"""What the models that generate semantic IDs share: one network over all domains, an adapter a domain."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor, nn

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.model.adapters import backbone_fingerprint
from recbole_gmc.model.copies import DomainWeights, weights_of_domains
from recbole_gmc.model.of_domains import DomainsRecommender
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.recommender import ListRecommender
from recbole_gmc.settings import DecodeSettings, Lookup, LoraSettings, SharingSettings, TokenizerSettings, read
from recbole_gmc.tokenizer.semantic_ids import SemanticIds


class GenerativeRecommender(DomainsRecommender):
    """A network over the semantic IDs of all domains, as RecBole sees it.

    RecBole builds the model before any tokenizer exists and calls ``predict`` on it to count FLOPs, so every item
    starts with a placeholder code; ``set_inputs`` gives the real ones.

    Attributes:
        network: the unified recommender, a plain module.
        text: text embeddings of the items, where the network reads them itself.
        mix: domain -> weight of a second ranking beside the codes', where there is one.
    """

    network: nn.Module
    text: TextEmbeddings | None = None
    mix: Mapping[str, float] | None = None

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        super().__init__(config, dataset)
        tokenizer = read(TokenizerSettings, config)
        self.lora, self.sharing = read(LoraSettings, config), read(SharingSettings, config)
        self.seed: int = config["seed"]
        self.vocabulary = Vocabulary(tokenizer.levels, tokenizer.codebook_size)
        self.adapters: DomainWeights | None = None
        self.semantic_ids: SemanticIds | None = None
        self.register_buffer("codes", self._placeholder_codes(), persistent=False)

    # ---- what a model gives --------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def rebuilt(config: Lookup, ids: SemanticIds, text: TextEmbeddings | None) -> nn.Module:
        """A fresh network of the shape that ``config`` names for these items."""

    @staticmethod
    @abstractmethod
    def serving(
        network: nn.Module,
        states: Mapping[str, Mapping[str, Tensor]],
        *,
        ids: SemanticIds,
        text: TextEmbeddings | None,
        mix: Mapping[str, float] | None,
        max_items: int,
        decode: DecodeSettings,
        device: torch.device | str,
    ) -> ListRecommender:
        """What recommends with these weights.

        Args:
            network: gives the shape; its own weights do not matter.
            states: domain -> plain weights, the domain's adapter merged.
        """

    def recommender(self, domains: tuple[str, ...] | None = None) -> ListRecommender:
        """What the weights of this moment recommend."""
        return self.serving(
            self.network,
            OrderedDict((domain, self.plain_state(domain)) for domain in domains or self.items.domains),
            ids=self._ids_now(),
            text=self.text,
            mix=self.mix,
            max_items=self.max_items,
            decode=self.decode,
            device=self.codes.device,
        )

    @abstractmethod
    def set_inputs(self, ids: SemanticIds, text: TextEmbeddings | None) -> None:
        """Takes semantic IDs and text embeddings of exactly this model's items.

        A network that does not fit them makes way for a fresh one, whose weights follow from the run's seed alone.
        """

    @abstractmethod
    def starting_point(self) -> list[Any]:
        """All of the model that decides what training makes of it, for hashing."""

    # ---- what they share -----------------------------------------------------------------------------------------

    def _placeholder_codes(self) -> Tensor:
        row, columns = torch.arange(len(self.items)), []
        for _ in range(self.vocabulary.levels):
            columns.append(row % self.vocabulary.codebook_size)
            row = row // self.vocabulary.codebook_size
        return torch.stack(columns[::-1], 1)

    def _set_codes(self, ids: SemanticIds) -> None:
        self.semantic_ids = ids
        self.codes = torch.from_numpy(np.asarray(ids.codes, np.int64)).to(self.codes.device)

    def _ids_now(self) -> SemanticIds:
        """The semantic IDs, or the placeholders."""
        return self.semantic_ids or SemanticIds(self.items, self.codes.cpu().numpy(), self.vocabulary.codebook_size)

    def _base_fingerprint(self) -> str:
        return backbone_fingerprint(self.network)

    def add_adapters(self) -> DomainWeights:
        """Gives each domain an adapter, or weights of its own; the network's are not trained from here on."""
        self.adapters = weights_of_domains(self.network, self.items.domains, self.lora, self.sharing)
        return self.adapters

    def plain_state(self, domain: str | None = None) -> dict[str, Tensor]:
        """Weights of the plain network, with the domain's adapter merged or its own ones where there are any."""
        if self.adapters is None:
            return dict(self.network.state_dict())
        return self.adapters.merged_state(domain)
