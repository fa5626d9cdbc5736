"""UniSRec (Hou et al., KDD 2022): text vectors through a mixture of whitening experts, contrastive pre-training."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from logging import getLogger
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole_gmc.baselines.dense import DenseNetwork, EncoderSettings, SequenceEncoder, contrast
from recbole_gmc.baselines.transfer import Inputs, TransferModel, TransferSettings
from torch import Tensor, nn

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.data.text import ItemTexts
from recbole_gmc.embed import embed, normalized, ready, refuse_missing
from recbole_gmc.items import ItemIndex
from recbole_gmc.places import cache_dir
from recbole_gmc.settings import Lookup, TextSettings, key, read
from recbole_gmc.train.stage import Stage

DROPPED = "words_dropped"

logger = getLogger("recbole_gmc.baselines")


@dataclass(frozen=True)
class UniSRecSettings:
    """Adaptor, losses and augmentation."""

    mode: str = key("finetune_mode", "transductive", choices=("transductive", "inductive"))
    freeze: bool = key("freeze_encoder", True)
    experts: int = key("n_exps", 8, least=1)
    adaptor_dropout: float = key("adaptor_dropout_prob", 0.2, least=0.0, most=0.9)
    shared: bool = key("adaptor_once_an_item", True)
    temperature: float = key("temperature", 0.07, above=0.0)
    sequence_weight: float = key("lambda", 1e-3, least=0.0)
    negatives: str = key("same_target_negatives", "exclude", choices=("exclude", "zero"))
    item_drop: float = key("item_drop_coefficient", 0.9, least=0.0, most=1.0)
    drop_ratio: float = key("item_drop_ratio", 0.2, least=0.0, most=1.0)
    word_ratio: float = key("word_drop_ratio", 0.15, least=0.0, most=1.0)
    word_path: dict | None = key("word_drop_embedding_path", None)

    @property
    def drops_words(self) -> bool:
        """Whether sequences are augmented by texts with fewer words, too."""
        return bool(self.sequence_weight) and self.item_drop < 1.0


class MoEAdaptor(nn.Module):
    """v = sum over e of g_e W_e (dropout(x) - b_e), with g = softmax(x W_g + noise in training).

    The gates start uniform, because their two matrices start at zero.
    """

    def __init__(self, dim: int, size: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, dim, size).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(experts, dim))
        self.gate = nn.Parameter(torch.zeros(dim, experts))
        self.noise = nn.Parameter(torch.zeros(dim, experts))
        self.dropout = nn.Dropout(dropout)

    def gates(self, x: Tensor) -> Tensor:
        """[n, experts], rows sum to 1."""
        logits = x @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(x @ self.noise) + 0.01)
        return logits.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, size] from [n, dim]."""
        gates = self.gates(x)
        total = torch.zeros(len(x), self.weight.shape[2], dtype=gates.dtype, device=x.device)
        for expert, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            total = total + gates[:, expert, None] * ((self.dropout(x) - bias) @ weight)
        return total


class UniSRecNetwork(DenseNetwork):
    """Adaptor and sequence encoder; ``ids`` [n, d], one trainable vector an item, only in transductive fine-tuning."""

    def __init__(self, dim: int, settings: UniSRecSettings, encoder: EncoderSettings, max_items: int) -> None:
        super().__init__()
        self.temperature = settings.temperature
        self.adaptor = MoEAdaptor(dim, encoder.hidden_size, settings.experts, settings.adaptor_dropout)
        self.encoder = SequenceEncoder(encoder, max_items)
        self.ids: nn.Embedding | None = None

    def add_ids(self, items: int) -> None:
        size, init = self.encoder.position.embedding_dim, self.encoder.init
        self.ids = nn.Embedding.from_pretrained(torch.empty(items, size).normal_(std=init), freeze=False)

    def item_vectors(self, features: Tensor) -> Tensor:
        vectors = self.adaptor(features)
        return vectors if self.ids is None else vectors + self.ids.weight

    def history_vectors(self, features: Tensor, vectors: Tensor, history: Tensor, length: Tensor) -> Tensor:
        return self.encoder(vectors[history], length)


class UniSRec(TransferModel):
    """Registered as ``UniSRec``; see ``properties/model/UniSRec.yaml``."""

    own_settings: ClassVar[tuple[type, ...]] = (TransferSettings, EncoderSettings, UniSRecSettings)

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        self.settings = read(UniSRecSettings, config)
        super().__init__(config, dataset)
        if self.settings.drops_words and not _can_drop_words(self.settings, read(TextSettings, config)):
            self.label = "setting with items dropped, no words"

    # ---- inputs and networks -------------------------------------------------------------------------------------

    @classmethod
    def placeholder(cls, config: Lookup, items: ItemIndex) -> Inputs:
        return Inputs(torch.zeros(len(items), read(TextSettings, config).lsa_dim))

    @classmethod
    def refuse_unfit(cls, config: Config, items: ItemIndex) -> None:
        refuse_missing(items, read(TextSettings, config))

    @classmethod
    def make_inputs(cls, config: Config, dataset: GMCDataset, train: SequenceRows, progress: bool) -> Inputs:
        text, settings = read(TextSettings, config), read(UniSRecSettings, config)
        texts, cache, device = dataset.texts(), cache_dir(config), config["device"]
        embeddings = embed(texts, text, cache, device=device, progress=progress)
        hashes, more = {"texts": texts.fingerprint, "embeddings": embeddings.fingerprint}, {}
        if not settings.drops_words:
            said = "items dropped only"
        elif not _can_drop_words(settings, text):
            said = "items dropped only: vectors of texts with words removed need word_drop_embedding_path or a "
            said += "text_encoder of transformers"
        elif settings.word_path is not None:
            vectors = np.array(normalized(ready.read_all(texts.items, settings.word_path), text.normalize))
            more, said = {DROPPED: torch.from_numpy(vectors)}, "items dropped, or words (word_drop_embedding_path)"
        else:
            fewer = drop_words(texts, settings.word_ratio, config["seed"])
            vectors = np.array(embed(fewer, text, cache, device=device, progress=progress).vectors)
            more, said = {DROPPED: torch.from_numpy(vectors)}, f"items dropped, or {settings.word_ratio:.0%} of words"
        logger.info("UniSRec, augmented sequences: %s", said)
        features = torch.from_numpy(np.array(embeddings.vectors))
        embeddings.refuse_change()
        return Inputs(features, more=more, hashes=hashes, about={"augmentation": said})

    @classmethod
    def network(cls, config: Lookup, inputs: Inputs) -> UniSRecNetwork:
        settings, encoder = read(UniSRecSettings, config), read(EncoderSettings, config)
        return UniSRecNetwork(inputs.items.shape[1], settings, encoder, config["MAX_ITEM_LIST_LENGTH"])

    @classmethod
    def network_of_domain(cls, config: Lookup, pretrained: DenseNetwork, features: Tensor) -> UniSRecNetwork:
        network: UniSRecNetwork = copy.deepcopy(pretrained)
        if read(UniSRecSettings, config).mode == "transductive":
            network.add_ids(len(features))
        return network

    def trained(self, stage: Stage) -> list[nn.Parameter]:
        """All in pre-training; fine-tuning leaves position embedding and blocks as pre-training made them."""
        if stage.domain is None:
            return list(self.pretrained.parameters())
        network = self.of_domain(stage.domain)
        frozen = ("encoder.position.", "encoder.blocks.") if self.settings.freeze and self.transfer.epochs else ()
        return [parameter for name, parameter in network.named_parameters() if not name.startswith(frozen)]

    # ---- losses --------------------------------------------------------------------------------------------------

    def pretrain_loss(self, rows: SequenceRows) -> Tensor:
        """Sequence to item, plus ``lambda`` times sequence to augmented sequence (paper section 2.3)."""
        network, features, settings = self.pretrained, self.inputs.items, self.settings
        history = rows.history.clamp(min=0)
        items, target = self._adapted(network.adaptor, features, history, rows.target)
        sequence = network.encoder(items, rows.length)
        how = {"target": rows.target, "negatives": settings.negatives}
        loss = contrast(sequence, target, settings.temperature, **how)
        if not settings.sequence_weight:
            return loss
        second = self.inputs.more.get(DROPPED)
        if second is None or torch.rand(()) < settings.item_drop:
            place, length = drop_items(history, rows.length, settings.drop_ratio)
            if settings.shared:
                items = items.gather(1, place[..., None].expand_as(items))
            else:
                items = _each(network.adaptor, features, history.gather(1, place))
        else:
            changed = torch.rand(history.shape, device=history.device) < settings.drop_ratio
            items, length = torch.where(changed[..., None], _each(network.adaptor, second, history), items), rows.length
        again = network.encoder(items, length)
        return loss + settings.sequence_weight * contrast(sequence, again, settings.temperature, **how)

    def _adapted(self, adaptor: MoEAdaptor, features: Tensor, history: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the histories' items [B, S, d] and of the targets [B, d]."""
        if not self.settings.shared:
            return _each(adaptor, features, history), _each(adaptor, features, target)
        used, place = torch.cat([history.flatten(), target]).unique(return_inverse=True)
        vectors = adaptor(features[used])[place]
        return vectors[: history.numel()].view(*history.shape, -1), vectors[history.numel() :]

    def tune_loss(self, rows: SequenceRows, domain: str, stage: str) -> Tensor:
        """Cross-entropy over all items of the domain (paper section 2.4)."""
        network, features = self.of_domain(domain), self.features(domain)
        vectors = network.item_vectors(features)
        if self.settings.shared:
            items = vectors[rows.history]
        else:
            items = _each(network.adaptor, features, rows.history)
            items = items if network.ids is None else items + network.ids(rows.history)
        return F.cross_entropy(network.logits(network.encoder(items, rows.length), vectors).float(), rows.target)


def _can_drop_words(settings: UniSRecSettings, text: TextSettings) -> bool:
    """Whether there are vectors of texts with fewer words: ready ones, or an encoder that makes them."""
    return settings.word_path is not None or (text.path is None and text.encoder != "lsa")


def _each(adaptor: MoEAdaptor, features: Tensor, rows: Tensor) -> Tensor:
    """Vectors [..., d] of ``rows`` [...], with dropout and gate noise of its own for every occurrence of an item."""
    return adaptor(features[rows.flatten()]).view(*rows.shape, -1)


def drop_items(history: Tensor, length: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Drops items of histories [B, S] with probability ``ratio``, never the first.

    The published code copies each dropped item over the kept one before it instead (two values scattered to one place).

    Returns:
        The places [B, S] of the kept items, in order, with others behind; and how many are kept [B].
    """
    place = torch.arange(history.shape[1], device=history.device)
    kept = (torch.rand(history.shape, device=history.device) >= ratio) | (place == 0)
    kept &= place < length[:, None]
    return torch.argsort((~kept).to(torch.uint8), dim=1, stable=True), kept.sum(1)


def drop_words(texts: ItemTexts, ratio: float, seed: int) -> ItemTexts:
    """The texts with each word removed with probability ``ratio``; one word always stays."""
    draw = random.Random(seed)
    fewer = []
    for text in texts.texts:
        words = text.split()
        kept = [word for word in words if draw.random() >= ratio] or words[:1]
        fewer.append(" ".join(kept) or text)
    return ItemTexts(texts.items, tuple(fewer))
