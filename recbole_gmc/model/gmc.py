"""GMC as RecBole sees it: a sequential recommender whose work is done by the rooms behind it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.decode.products import onednn_batched, trains_by_onednn
from recbole_gmc.model.copies import DomainWeights, weights_of_domains
from recbole_gmc.model.forward import PackedT5
from recbole_gmc.model.prefix_loss import level_weights
from recbole_gmc.model.seq2seq import build_t5, encode_histories, sequence_log_prob
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.recommender import Recommender
from recbole_gmc.settings import (
    DecodeSettings,
    LoraSettings,
    PrefixSettings,
    SharingSettings,
    T5Settings,
    TokenizerSettings,
    read,
)
from recbole_gmc.tokenizer.semantic_ids import SemanticIds


class GMC(SequentialRecommender):
    """One T5 over the semantic IDs of all domains, with one LoRA adapter a domain (paper section 4).

    RecBole builds the model before any tokenizer exists and calls ``predict`` on it to count FLOPs, so every item
    starts with a placeholder code; ``set_semantic_ids`` gives the real ones.

    Attributes:
        label: what a reader of the results must know of the setting; empty for the method as published.
        own_settings: settings classes that a subclass adds.
    """

    label: str = ""
    own_settings: ClassVar[tuple[type, ...]] = ()

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        super().__init__(config, dataset)
        tokenizer = read(TokenizerSettings, config)
        self.decode = read(DecodeSettings, config)
        self.lora, self.sharing = read(LoraSettings, config), read(SharingSettings, config)
        self.max_items: int = config["MAX_ITEM_LIST_LENGTH"]
        self.items = dataset.items
        self.vocabulary = Vocabulary(tokenizer.levels, tokenizer.codebook_size)
        self.seed: int = config["seed"]
        self.t5_settings, self.prefix = read(T5Settings, config), read(PrefixSettings, config)
        self.t5 = build_t5(self.t5_settings, self.vocabulary)
        self.adapters: DomainWeights | None = None
        self._network: PackedT5 | None = None
        self.semantic_ids: SemanticIds | None = None
        self.register_buffer("row_of_item", torch.from_numpy(dataset.item_rows), persistent=False)
        self.register_buffer("item_of_row", torch.from_numpy(dataset.item_ids), persistent=False)
        self.register_buffer("domain_of_row", torch.from_numpy(dataset.items.domain_of_row), persistent=False)
        self.register_buffer("codes", self._placeholder_codes(), persistent=False)

    def _placeholder_codes(self) -> Tensor:
        row, columns = torch.arange(len(self.items)), []
        for _ in range(self.vocabulary.levels):
            columns.append(row % self.vocabulary.codebook_size)
            row = row // self.vocabulary.codebook_size
        return torch.stack(columns[::-1], 1)

    def set_semantic_ids(self, ids: SemanticIds) -> None:
        """Replaces the placeholder codes; the IDs must be for exactly this model's items.

        A T5 that lacks their tokens makes way for a fresh one, whose weights follow from the run's seed alone.
        """
        if (needed := Vocabulary.of(ids)) != self.vocabulary:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.t5 = build_t5(self.t5_settings, needed).to(self.codes.device)
            self.vocabulary = needed
        self.semantic_ids = ids
        self.codes = torch.from_numpy(np.asarray(ids.codes, np.int64)).to(self.codes.device)

    def add_adapters(self) -> DomainWeights:
        """Gives each domain an adapter on the T5, or weights of its own; the T5's are not trained from here on."""
        self.adapters = weights_of_domains(self.t5, self.items.domains, self.lora, self.sharing)
        return self.adapters

    def plain_state(self, domain: str | None = None) -> dict[str, Tensor]:
        """Weights of the plain T5, with the domain's adapter merged or its own ones where there are any."""
        if self.adapters is None:
            return dict(self.t5.state_dict())
        return self.adapters.merged_state(domain)

    def recommender(self, domains: tuple[str, ...] | None = None) -> Recommender:
        """What the weights of this moment recommend."""
        ids = self.semantic_ids or SemanticIds(self.items, self.codes.cpu().numpy(), self.vocabulary.codebook_size)
        states: Mapping[str, Mapping[str, Tensor]] = OrderedDict(
            (domain, self.plain_state(domain)) for domain in domains or self.items.domains
        )
        return Recommender(
            ids, self.t5.config, states, max_items=self.max_items, decode=self.decode, device=self.codes.device
        )

    def loss(self, rows: SequenceRows) -> Tensor:
        """Mean cross-entropy over the L codes of the targets (eq. 8), and of their prefixes where that is asked for."""
        return self._packed(torch.float32).loss(*self._sequences(rows))

    def backward(self, rows: SequenceRows, dtype: torch.dtype, chunk_tokens: int) -> Tensor:
        """Adds the gradient of ``loss`` to the parameters and returns its value.

        Args:
            rows: an i.i.d. batch.
            dtype: fp32 or bf16, of products and activations.
            chunk_tokens: encoder tokens held at once; fewer need less memory, the gradient stays.
        """
        with onednn_batched() if self._by_onednn else nullcontext():
            return self._packed(dtype).backward(*self._sequences(rows), chunk_tokens)

    @cached_property
    def _by_onednn(self) -> bool:
        return trains_by_onednn(self.decode.gemm, self.codes.device)

    def _packed(self, dtype: torch.dtype) -> PackedT5:
        if self._network is None or self._network.t5 is not self.t5 or self._network.dtype != dtype:
            weigh = partial(level_weights, **asdict(self.prefix)) if self.prefix.beta else None
            self._network = PackedT5(self.t5, dtype, weigh)
        return self._network

    def _sequences(self, rows: SequenceRows) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder tokens [B, S], how many of them count [B], and labels [B, L]."""
        tokens, _ = encode_histories(self.codes, rows.history, rows.length, self.vocabulary)
        sizes = rows.length * self.vocabulary.levels + 1
        return tokens, sizes, self.vocabulary.tokens(self.codes[rows.target])

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        return self.loss(self._rows(interaction))

    def predict(self, interaction: Interaction) -> Tensor:
        """[B]: the exact log-probability of each row's item, in its own domain."""
        rows = self._rows(interaction)
        tokens, mask = encode_histories(self.codes, rows.history, rows.length, self.vocabulary)
        labels = self.vocabulary.tokens(self.codes[rows.target])
        scores = torch.empty(len(rows), device=labels.device)
        for position in rows.domain.unique().tolist():
            users = (rows.domain == position).nonzero().flatten()
            if self.adapters is not None:
                self.adapters.activate(self.items.domains[position])
            scores[users] = sequence_log_prob(self.t5, tokens[users], mask[users], labels[users])
        return scores

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """[B, items]: log-probability of the items that the beam holds, -inf for all others (``full_sort_topk``)."""
        history, length = self._histories(interaction)
        domain = self.domain_of_row[history[:, 0]]
        scores = torch.full((len(history), self.n_items), -torch.inf, device=history.device)
        recommender = self.recommender()
        for position in domain.unique().tolist():
            users = (domain == position).nonzero().flatten()
            found = recommender.rank(self.items.domains[position], history[users], length[users])
            ranked = torch.from_numpy(found.ranked).to(scores.device)
            values = torch.from_numpy(found.scores).to(scores.device)
            columns = torch.where(ranked >= 0, self.item_of_row[ranked], 0)
            scores[users] = scores[users].scatter_reduce(1, columns, values, "amax")
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
