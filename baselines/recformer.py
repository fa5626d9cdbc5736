"""RecFormer (Li et al., KDD 2023): items and histories as text in a Longformer, compared by cosine."""

from __future__ import annotations

import copy
from dataclasses import asdict
from logging import getLogger
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole_gmc.baselines import recformer_text
from recbole_gmc.baselines.dense import DenseNetwork, contrast
from recbole_gmc.baselines.recformer_network import RecFormerNetwork, RecFormerSettings, located, own_shape, shape_of
from recbole_gmc.baselines.transfer import PRETRAIN, Inputs, TransferModel, TransferSettings
from torch import Tensor, nn

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.files import hash_of
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import Lookup, TrainSettings, read
from recbole_gmc.train.stage import Stage

FIXED = "fixed:"

logger = getLogger("recbole_gmc.baselines")


class RecFormer(TransferModel):
    """Registered as ``RecFormer``; see ``properties/model/RecFormer.yaml``."""

    own_settings: ClassVar[tuple[type, ...]] = (TransferSettings, RecFormerSettings)

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        self.settings = read(RecFormerSettings, config)
        self.chunk_tokens = read(TrainSettings, config).chunk_tokens
        super().__init__(config, dataset)
        if self.settings.weights is None:
            self.label = "small from-scratch setting"
        if not self.settings.mlm_weight:
            self.label = f"{self.label or 'setting'} without masked words"

    # ---- inputs and networks -------------------------------------------------------------------------------------

    @classmethod
    def placeholder(cls, config: Lookup, items: ItemIndex) -> Inputs:
        tokens = torch.full((len(items), 3, 1), recformer_text.KEY, dtype=torch.int32)
        specials = recformer_text.Specials(start=0, pad=1, mask=2, first=3, size=5)
        return Inputs(tokens, facts=_facts(specials, own_shape(read(RecFormerSettings, config), specials)))

    @classmethod
    def refuse_unfit(cls, config: Config, items: ItemIndex) -> None:
        settings = read(RecFormerSettings, config)
        if settings.weights is not None:
            shape_of(settings)

    @classmethod
    def make_inputs(cls, config: Config, dataset: GMCDataset, train: SequenceRows, progress: bool) -> Inputs:
        settings, attributes = read(RecFormerSettings, config), dataset.attributes()
        if settings.weights is None:
            texts = [f"{name} {value}" for row in attributes for name, value in row.items()]
            tokenize, specials = recformer_text.own_words(texts, settings.vocabulary)
            shape = own_shape(settings, specials)
        else:
            tokenize, specials = recformer_text.pretrained_words(located(settings)[0])
            shape = shape_of(settings)
        limits = settings.attributes, settings.attribute_tokens
        tokens = recformer_text.item_tokens(attributes, tokenize, specials.pad, *limits)
        lengths = (tokens[:, recformer_text.KINDS] != recformer_text.PADDING).sum(1)
        about = {
            "vocabulary": specials.size,
            "tokens_an_item": float(lengths.float().mean()),
            "longest": tokens.shape[2],
        }
        logger.info(f"RecFormer: {about['tokens_an_item']:.1f} tokens an item, {specials.size:,} tokens known")
        hashes = {"texts": dataset.texts().fingerprint, "tokens": hash_of(tokens.numpy())}
        return Inputs(tokens, facts=_facts(specials, shape), hashes=hashes, about=about)

    @classmethod
    def network(cls, config: Lookup, inputs: Inputs) -> RecFormerNetwork:
        specials = recformer_text.Specials(**inputs.facts["specials"])
        settings = read(RecFormerSettings, config)
        return RecFormerNetwork(inputs.facts["longformer"], specials, settings, config["MAX_ITEM_LIST_LENGTH"])

    @classmethod
    def network_of_domain(cls, config: Lookup, pretrained: DenseNetwork, features: Tensor) -> RecFormerNetwork:
        network: RecFormerNetwork = copy.deepcopy(pretrained)
        network.add_matrix(len(features))
        return network

    def start_weights(self) -> None:
        if self.settings.weights is not None:
            self.pretrained.read_longformer(located(self.settings)[0])

    def trained(self, stage: Stage) -> list[nn.Parameter]:
        """In pre-training all, but the word embeddings where they came with the weights; then all but the MLM head."""
        if stage.domain is None:
            left = ("words.",) if self.settings.weights is not None and self.settings.freeze_words else ()
            left += () if self.settings.mlm_weight else ("head.",)
            network = self.pretrained
        else:
            left, network = ("head.",), self.of_domain(stage.domain)
        return [parameter for name, parameter in network.named_parameters() if not name.startswith(left)]

    # ---- stages --------------------------------------------------------------------------------------------------

    def stages(self, domain: str) -> list[Stage]:
        """First the item vectors are made anew every epoch; then they stay as they were in the best one."""
        second = {"stopping_step": self.settings.fixed_stopping_step}
        first = self.tune_stage(f"finetune:{domain}", domain)
        return [first, self.tune_stage(f"{FIXED}{domain}", domain, **second)]

    def start_stage(self, stage: Stage) -> None:
        if stage.name.startswith(FIXED) and not self.of_domain(stage.domain).fixed:
            self.of_domain(stage.domain).fix(self.features(stage.domain))

    def start_epoch(self, rows: SequenceRows, stage: Stage, draw: torch.Generator) -> SequenceRows:
        if stage.domain is not None and not stage.name.startswith(FIXED):
            self.of_domain(stage.domain).fix(self.features(stage.domain))
        if self.settings.targets == "all":
            return rows
        return rows.select(one_a_user(rows.user.cpu(), stage.name == PRETRAIN, draw).to(rows.user.device))

    def rows_an_epoch(self, rows: SequenceRows, stage: Stage) -> int:
        return len(rows) if self.settings.targets == "all" else len(rows.user.unique())

    def parts(self, rows: SequenceRows, stage: Stage) -> list[SequenceRows]:
        """Groups of negatives in pre-training; in fine-tuning chunks of like length, which change no gradient."""
        if stage.domain is None:
            return [rows.select(part) for part in torch.arange(len(rows)).split(self.settings.contrast_rows)]
        return [rows.select(part) for part in self._chunks(rows)]

    def _chunks(self, rows: SequenceRows) -> list[Tensor]:
        order, tokens = torch.argsort(rows.length, stable=True), self.inputs.items.shape[2]
        widths = (rows.length[order] * tokens + 1).clamp(max=self.settings.most_tokens).tolist()
        chunks, start = [], 0
        for row, width in enumerate(widths):  # sorted, so this row is the widest so far
            if row > start and (row + 1 - start) * width > self.chunk_tokens:
                chunks.append(order[start:row])
                start = row
        return [*chunks, order[start:]]

    # ---- losses --------------------------------------------------------------------------------------------------

    def pretrain_loss(self, rows: SequenceRows) -> Tensor:
        """Sequence to item among the group's targets, plus masked words on both sides (paper section 2.4)."""
        network, tokens, settings = self.pretrained, self.inputs.items, self.settings
        histories = network.tokens(tokens, rows.history.clamp(min=0), rows.length)
        targets = network.tokens(tokens, rows.target[:, None], torch.ones_like(rows.length))
        loss = contrast(network.pooled(histories), network.pooled(targets), settings.temperature)
        if settings.mlm_weight:
            for side in (histories, targets):
                loss = loss + settings.mlm_weight * network.masked_loss(side, settings.mlm_ratio)
        return loss

    def tune_loss(self, rows: SequenceRows, domain: str, stage: str) -> Tensor:
        """Cross-entropy over all items of the domain, whose vectors have no gradient."""
        network, tokens = self.of_domain(domain), self.features(domain)
        histories = network.history_vectors(tokens, network.matrix, rows.history, rows.length)
        return F.cross_entropy(network.logits(histories, network.matrix).float(), rows.target)


def _facts(specials: recformer_text.Specials, shape: dict[str, Any]) -> dict[str, Any]:
    return {"specials": asdict(specials), "longformer": shape}


def one_a_user(user: Tensor, later: bool, draw: torch.Generator) -> Tensor:
    """One random row of each user: int64 [users], in the order of the users' ids.

    Args:
        user: int64 [n]; a user's rows are in time order.
        later: only rows whose target lies in the second half of the user's sequence, as in pre-training.
    """
    order = torch.argsort(user, stable=True)
    _, counts = torch.unique_consecutive(user[order], return_counts=True)
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    lowest = (counts // 2 - 1).clamp(min=0) if later else torch.zeros_like(counts)
    place = lowest + (torch.rand(len(counts), generator=draw) * (counts - lowest)).long()
    return order[first + place]
