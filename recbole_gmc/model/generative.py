"""What the models that generate semantic IDs share: one network over all domains, an adapter a domain."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.model.adapters import backbone_fingerprint
from recbole_gmc.model.copies import DomainWeights, weights_of_domains
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.recommender import ListRecommender
from recbole_gmc.settings import DecodeSettings, Lookup, LoraSettings, SharingSettings, TokenizerSettings, read
from recbole_gmc.tokenizer.semantic_ids import SemanticIds


class GenerativeRecommender(SequentialRecommender):
    """A network over the semantic IDs of all domains, as RecBole sees it.

    RecBole builds the model before any tokenizer exists and calls ``predict`` on it to count FLOPs, so every item
    starts with a placeholder code; ``set_inputs`` gives the real ones.

    Attributes:
        label: what a reader of the results must know of the setting; empty for the method as published.
        own_settings: the model's settings classes beside the common ones.
        network: the unified recommender, a plain module.
        text: text embeddings of the items, where the network reads them itself.
        mix: domain -> weight of a second ranking beside the codes', where there is one.
        version: which of the earlier IDs ``codes`` holds; ``None`` is the final ones.
    """

    network: nn.Module
    label: str = ""
    own_settings: ClassVar[tuple[type, ...]] = ()
    text: TextEmbeddings | None = None
    mix: Mapping[str, float] | None = None
    version: int | None = None

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        super().__init__(config, dataset)
        tokenizer = read(TokenizerSettings, config)
        self.decode = read(DecodeSettings, config)
        self.lora, self.sharing = read(LoraSettings, config), read(SharingSettings, config)
        self.max_items: int = config["MAX_ITEM_LIST_LENGTH"]
        self.seed: int = config["seed"]
        self.items = dataset.items
        self.vocabulary = Vocabulary(tokenizer.levels, tokenizer.codebook_size)
        self.adapters: DomainWeights | None = None
        self.semantic_ids: SemanticIds | None = None
        self.register_buffer("row_of_item", torch.from_numpy(dataset.item_rows), persistent=False)
        self.register_buffer("item_of_row", torch.from_numpy(dataset.item_ids), persistent=False)
        self.register_buffer("domain_of_row", torch.from_numpy(dataset.items.domain_of_row), persistent=False)
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

    @abstractmethod
    def _scored(self, recommender: Any, domain: str, history: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """What ``full_sort_predict`` knows of a domain's users.

        Returns:
            RecBole's ids of items, int64 [B, K], or [K] where all users have the same; 0 with -inf where there are
            fewer. Their scores [B, K].
        """

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

    @contextmanager
    def version_of_step(self) -> Iterator[None]:
        """While the unified network is trained, the codes of one version of the IDs that is drawn at random.

        Adapters are trained on the final version, the one that is decoded.
        """
        final, ids = self.codes, self.semantic_ids
        if self.training and self.adapters is None and ids is not None and ids.earlier is not None:
            number = int(torch.randint(len(ids.earlier) + 1, ()))
            if number < len(ids.earlier):
                self.codes = torch.from_numpy(ids.earlier[number].astype(np.int64)).to(final.device)
                self.version = number
        try:
            yield
        finally:
            self.codes, self.version = final, None

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
