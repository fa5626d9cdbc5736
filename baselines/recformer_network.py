"""RecFormer's network: a Longformer with embeddings for token kinds and item positions, and its masked-word head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from recbole_gmc.baselines.dense import DenseNetwork
from recbole_gmc.baselines.recformer_text import Sequences, Specials, mask_words, sequences
from torch import Tensor, nn
from transformers import LongformerConfig, LongformerForMaskedLM
from transformers.models.longformer.modeling_longformer import LongformerEncoder

from recbole_gmc.embed import pretrained
from recbole_gmc.errors import EmbeddingError, SettingError
from recbole_gmc.settings import key

# What of a LongformerConfig decides the shape and the arithmetic of the network.
SHAPE = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob max_position_embeddings layer_norm_eps initializer_range pad_token_id bos_token_id"
).split()


@dataclass(frozen=True)
class RecFormerSettings:
    """Text, network and losses; the sizes are those of a network from scratch, without ``weights``."""

    weights: str | None = key("longformer", None)
    hidden: int = key("longformer_hidden_size", 64, least=4)
    layers: int = key("longformer_layers", 2, least=1)
    heads: int = key("longformer_heads", 2, least=1)
    inner: int = key("longformer_inner_size", 256, least=1)
    vocabulary: int = key("longformer_vocabulary", 20_000, least=1)
    dropout: float = key("longformer_dropout", 0.1, least=0.0, most=0.9)
    window: int = key("attention_window", 64, least=2)
    attributes: int = key("max_attributes", 3, least=1)
    attribute_tokens: int = key("max_attribute_tokens", 32, least=1)
    most_tokens: int = key("max_tokens", 1024, least=2)
    temperature: float = key("temperature", 0.05, above=0.0)
    mlm_weight: float = key("mlm_weight", 0.1, least=0.0)
    mlm_ratio: float = key("mlm_ratio", 0.15, above=0.0, most=0.9)
    freeze_words: bool = key("freeze_word_embedding", True)
    contrast_rows: int = key("pretrain_contrast_rows", 64, least=2)
    targets: str = key("targets_an_epoch", "one", choices=("one", "all"))
    fixed_stopping_step: int = key("fixed_stopping_step", 3, least=0)
    item_batch: int = key("item_batch", 256, least=1)

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            mend = "Choose a multiple of longformer_heads"
            raise SettingError(f"{self.hidden} is no multiple of {self.heads}", "longformer_hidden_size", mend)
        if self.window % 2:
            raise SettingError(f"{self.window} is odd", "attention_window", "It reaches as far back as ahead")


def own_shape(settings: RecFormerSettings, specials: Specials) -> dict[str, Any]:
    """The shape of a small Longformer from scratch."""
    config = LongformerConfig(
        vocab_size=specials.size,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.inner,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        max_position_embeddings=settings.most_tokens + specials.pad + 1,
        pad_token_id=specials.pad,
        bos_token_id=specials.start,
        # The 0.02 of the published width leaves so little of a narrow network's text in the start token that all items
        # begin with one vector.
        initializer_range=settings.hidden**-0.5,
    )
    return {name: getattr(config, name) for name in SHAPE}


def located(settings: RecFormerSettings) -> tuple[str, Any]:
    """Folder or hub name of the weights, and their configuration.

    Raises:
        SettingError: nothing there, no safetensors, or another architecture.
    """
    try:
        source, config = pretrained.located(str(settings.weights))
    except EmbeddingError as error:
        raise SettingError(error.what, "longformer", "Give a folder or name of Longformer weights, or ~") from error
    if config.model_type != "longformer":
        mend = "Give weights such as allenai/longformer-base-4096, or ~ for a small network from scratch"
        raise SettingError(f"{source} holds a {config.model_type}, not a longformer", "longformer", mend)
    return source, config


def shape_of(settings: RecFormerSettings) -> dict[str, Any]:
    """The shape of the weights that ``longformer`` names."""
    _, config = located(settings)
    if config.max_position_embeddings < settings.most_tokens + config.pad_token_id + 1:
        what = f"{settings.most_tokens} tokens are more than the weights have positions for"
        raise SettingError(what, "max_tokens", f"At most {config.max_position_embeddings - config.pad_token_id - 1}")
    return {name: getattr(config, name) for name in SHAPE}


class RecFormerNetwork(DenseNetwork):
    """The vector of an item or a history is the last hidden state of its start token.

    ``matrix`` [n, d], only in a domain's own network, holds the vectors of its items once ``fixed`` is set.
    """

    def __init__(self, shape: dict[str, Any], specials: Specials, settings: RecFormerSettings, max_items: int) -> None:
        super().__init__()
        self.settings, self.specials, self.temperature = settings, specials, settings.temperature
        layers, size, pad = shape["num_hidden_layers"], shape["hidden_size"], shape["pad_token_id"]
        config = LongformerConfig(**shape, attention_window=[settings.window] * layers)
        self.words = nn.Embedding(shape["vocab_size"], size, padding_idx=pad)
        self.positions = nn.Embedding(shape["max_position_embeddings"], size, padding_idx=pad)
        self.kinds = nn.Embedding(4, size)
        self.items = nn.Embedding(max_items + 1, size)
        self.norm = nn.LayerNorm(size, eps=shape["layer_norm_eps"])
        self.dropout = nn.Dropout(shape["hidden_dropout_prob"])
        self.encoder = LongformerEncoder(config)
        self.head = nn.ModuleDict(
            {"dense": nn.Linear(size, size), "norm": nn.LayerNorm(size, eps=shape["layer_norm_eps"])}
        )
        self.head.register_parameter("bias", nn.Parameter(torch.zeros(shape["vocab_size"])))
        self.matrix: Tensor | None = None
        self.fixed = False
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=shape["initializer_range"])
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])

    def read_longformer(self, source: str) -> None:
        """Takes the weights of a transformers checkpoint; kinds and item positions keep their random start."""
        found = LongformerForMaskedLM.from_pretrained(source, use_safetensors=True)
        embeddings = found.longformer.embeddings
        self.words.load_state_dict(embeddings.word_embeddings.state_dict())
        self.positions.load_state_dict(embeddings.position_embeddings.state_dict())
        self.norm.load_state_dict(embeddings.LayerNorm.state_dict())
        self.encoder.load_state_dict(found.longformer.encoder.state_dict())
        self.head["dense"].load_state_dict(found.lm_head.dense.state_dict())
        self.head["norm"].load_state_dict(found.lm_head.layer_norm.state_dict())
        with torch.no_grad():
            self.head.bias.copy_(found.lm_head.bias)

    # ---- vectors -------------------------------------------------------------------------------------------------

    def tokens(self, features: Tensor, history: Tensor, length: Tensor) -> Sequences:
        special, settings = self.specials, self.settings
        return sequences(features, history, length, special.start, special.pad, settings.most_tokens, settings.window)

    def forward(self, found: Sequences, ids: Tensor | None = None) -> Tensor:
        """[B, N, d]: the last hidden states; local attention, global for the start token."""
        ids = found.ids if ids is None else ids
        inside = found.inside
        place = torch.where(inside, inside.cumsum(1), 0) + self.specials.pad
        embedded = self.words(ids) + self.positions(place) + self.kinds(found.kinds) + self.items(found.items)
        hidden = self.dropout(self.norm(embedded))
        # LongformerEncoder's own code: below zero is padding, above it attends to all and is attended by all.
        mask = torch.zeros(ids.shape, dtype=hidden.dtype, device=ids.device).masked_fill(~inside, -10000.0)
        mask[:, 0] = 10000.0
        return self.encoder(hidden, attention_mask=mask).last_hidden_state

    def pooled(self, found: Sequences) -> Tensor:
        """[B, d]."""
        return self(found)[:, 0]

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """[n, d]: the vectors of items [n, 3, T], without dropout."""
        training = self.training
        self.eval()
        rows, made = torch.arange(len(features), device=features.device), []
        for part in rows.split(self.settings.item_batch):
            made.append(self.pooled(self.tokens(features, part[:, None], torch.ones_like(part))).float())
        self.train(training)
        return torch.cat(made)

    def item_vectors(self, features: Tensor) -> Tensor:
        return self.matrix if self.fixed else self.encode(features)

    def history_vectors(self, features: Tensor, vectors: Tensor, history: Tensor, length: Tensor) -> Tensor:
        return self.pooled(self.tokens(features, history, length))

    # ---- the item matrix -----------------------------------------------------------------------------------------

    def add_matrix(self, items: int) -> None:
        del self.matrix, self.fixed
        self.register_buffer("matrix", torch.zeros(items, self.words.embedding_dim))
        self.register_buffer("fixed", torch.tensor(False))

    def fix(self, features: Tensor) -> None:
        """Makes the item vectors of this moment those that rank from now on."""
        self.matrix.copy_(self.encode(features))
        self.fixed.fill_(True)

    # ---- masked words --------------------------------------------------------------------------------------------

    def masked_loss(self, found: Sequences, ratio: float) -> Tensor:
        """Mean cross-entropy of the masked tokens; 0 where the draw masked none."""
        ids, chosen = mask_words(found, self.specials, ratio)
        hidden = self(found, ids)[chosen]
        if not len(hidden):
            return hidden.sum()
        hidden = self.head["norm"](F.gelu(self.head["dense"](hidden)))
        return F.cross_entropy((hidden @ self.words.weight.T + self.head.bias).float(), found.ids[chosen])
