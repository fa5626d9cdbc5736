"""GMC as RecBole sees it: a sequential recommender whose work is done by the rooms behind it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor
from transformers import T5ForConditionalGeneration

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.model.forward import PackedT5
from recbole_gmc.model.generative import GenerativeRecommender
from recbole_gmc.model.prefix_loss import level_weights
from recbole_gmc.model.seq2seq import build_t5, encode_histories, sequence_log_prob
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.products import onednn_batched, trains_by_onednn
from recbole_gmc.recommender import Recommender
from recbole_gmc.settings import Lookup, PrefixSettings, T5Settings, read
from recbole_gmc.tokenizer.semantic_ids import SemanticIds


class GMC(GenerativeRecommender):
    """One T5 over the semantic IDs of all domains, with one LoRA adapter a domain (paper section 4)."""

    network: T5ForConditionalGeneration

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        super().__init__(config, dataset)
        self.t5_settings, self.prefix = read(T5Settings, config), read(PrefixSettings, config)
        self.network = build_t5(self.t5_settings, self.vocabulary)
        self._packed_t5: PackedT5 | None = None

    @property
    def t5(self) -> T5ForConditionalGeneration:
        return self.network

    def set_inputs(self, ids: SemanticIds, text: TextEmbeddings | None = None) -> None:
        """The text was only needed for the IDs."""
        if (needed := Vocabulary.of(ids)) != self.vocabulary:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.network = build_t5(self.t5_settings, needed).to(self.codes.device)
            self.vocabulary = needed
        self._set_codes(ids)

    def starting_point(self) -> list[Any]:
        return [self.semantic_ids.fingerprint, self._base_fingerprint(), self.network.config.dropout_rate]

    @staticmethod
    def rebuilt(config: Lookup, ids: SemanticIds, text: TextEmbeddings | None) -> T5ForConditionalGeneration:
        return build_t5(read(T5Settings, config), Vocabulary.of(ids))

    @staticmethod
    def serving(
        network: T5ForConditionalGeneration, states: Mapping[str, Mapping[str, Tensor]], *, ids: SemanticIds, **how: Any
    ) -> Recommender:
        how = {name: how[name] for name in ("max_items", "decode", "device")}
        return Recommender(ids, network.config, states, **how)

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
        if self._packed_t5 is None or self._packed_t5.t5 is not self.network or self._packed_t5.dtype != dtype:
            weigh = partial(level_weights, **asdict(self.prefix)) if self.prefix.beta else None
            self._packed_t5 = PackedT5(self.network, dtype, weigh)
        return self._packed_t5

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
        for domain, users in self.by_domain(rows.domain):
            if self.adapters is not None:
                self.adapters.activate(domain)
            scores[users] = sequence_log_prob(self.network, tokens[users], mask[users], labels[users])
        return scores

    def _scored(self, recommender: Recommender, domain: str, history: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """The items that the beam holds, with their log-probabilities."""
        found = recommender.rank(domain, history, length)
        ranked, scores = (torch.from_numpy(part).to(history.device) for part in (found.ranked, found.scores))
        return torch.where(ranked >= 0, self.item_of_row[ranked], 0), scores
