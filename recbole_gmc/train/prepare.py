"""From a dataset to semantic IDs: the stages before the recommender, each cached under the content it was made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from recbole.config import Config

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.embed import TextEmbeddings, embed, refuse_missing
from recbole_gmc.errors import TokenizerError
from recbole_gmc.items import ItemIndex
from recbole_gmc.places import cache_dir
from recbole_gmc.settings import CooccurrenceSettings, SharingSettings, TextSettings, TokenizerSettings, read
from recbole_gmc.tokenizer import tokenize
from recbole_gmc.tokenizer.apart import tokenize_apart
from recbole_gmc.tokenizer.cooccurrence import cooccurrences, with_cooccurrence
from recbole_gmc.tokenizer.kmeans import require_faiss
from recbole_gmc.tokenizer.residuals import Residuals
from recbole_gmc.tokenizer.semantic_ids import SemanticIds


@dataclass(frozen=True)
class Prepared:
    """Semantic IDs, the quality figures of the tokenizer, and the hashes of what they were made of.

    ``text`` holds the text embeddings that the IDs were made of, if any; ``residuals`` a sample of what each level
    quantised.
    """

    ids: SemanticIds
    quality: dict[str, Any]
    inputs: dict[str, str]
    text: TextEmbeddings | None = None
    residuals: Residuals = field(default_factory=dict)


def refuse_unfit(config: Config, items: ItemIndex) -> None:
    """Refuses files that the stages below are to read and packages that they need, before any work.

    Raises:
        GMCError: ready embeddings, an encoder or imported IDs that are missing or do not fit the catalogue; fewer codes
            than items; no faiss.
    """
    refuse_missing(items, read(TextSettings, config))
    tokenizer = read(TokenizerSettings, config)
    size, levels = tokenizer.codebook_size, tokenizer.levels
    if tokenizer.ids_path is not None:
        SemanticIds.read_index(tokenizer.ids_path, items, size, levels, tokenizer.ids_repair)
        return
    for domain, tokens in items.tokens.items():
        if len(tokens) > size**levels:
            what = f"{len(tokens)} items of domain {domain!r} cannot have an ID each: {size}^{levels} is less"
            raise TokenizerError(what, "codebook_size", "Set a larger codebook_size or code_levels")
    if tokenizer.kind == "rkmeans" or tokenizer.kmeans_init:
        require_faiss()


def semantic_ids(config: Config, dataset: GMCDataset, device: torch.device, progress: bool) -> Prepared:
    cache = cache_dir(config)
    texts = dataset.texts()
    embeddings = embed(texts, read(TextSettings, config), cache, device=device, progress=progress)
    settings = read(TokenizerSettings, config)
    how = tokenize if read(SharingSettings, config).tokenizer else tokenize_apart
    joined = _with_behaviour(config, dataset, embeddings)
    made = how(joined, settings, seed=config["seed"], cache_dir=cache, device=device, progress=progress)
    inputs = {
        "items": dataset.items.fingerprint,
        "texts": texts.fingerprint,
        "embeddings": joined.fingerprint,
        "semantic_ids": made.ids.fingerprint,
    }
    if joined is not embeddings:
        inputs["text_embeddings"] = embeddings.fingerprint
    return Prepared(made.ids, made.quality, inputs, embeddings, made.residuals)


def _with_behaviour(config: Config, dataset: GMCDataset, text: TextEmbeddings) -> TextEmbeddings:
    """The vectors that become IDs: the text's, and those of the training rows where the settings give them weight.

    Args:
        dataset: the training part, whose rows know nothing of what is held out.
    """
    settings = read(CooccurrenceSettings, config)
    if not settings.weight or read(TokenizerSettings, config).ids_path is not None:
        return text
    rows = SequenceRows.of(dataset)
    history, length, target = (part.numpy() for part in (rows.history, rows.length, rows.target))
    counts = cooccurrences(history, length, target, len(text.items), settings.window)
    joined = TextEmbeddings(text.items, with_cooccurrence(text.items, text.vectors, counts, settings, config["seed"]))
    text.refuse_change()
    return joined
