"""From a dataset to semantic IDs: the stages before the recommender, each cached under the content it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from recbole.config import Config

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.embed import embed
from recbole_gmc.places import cache_dir
from recbole_gmc.settings import TextSettings, TokenizerSettings, read
from recbole_gmc.tokenizer import tokenize
from recbole_gmc.tokenizer.semantic_ids import SemanticIds


@dataclass(frozen=True)
class Prepared:
    """Semantic IDs, the quality figures of the tokenizer, and the hashes of what they were made of."""

    ids: SemanticIds
    quality: dict[str, Any]
    inputs: dict[str, str]


def semantic_ids(config: Config, dataset: GMCDataset, device: torch.device, progress: bool) -> Prepared:
    cache = cache_dir(config)
    texts = dataset.texts()
    embeddings = embed(texts, read(TextSettings, config), cache, device=device, progress=progress)
    settings = read(TokenizerSettings, config)
    made = tokenize(embeddings, settings, seed=config["seed"], cache_dir=cache, device=device, progress=progress)
    inputs = {
        "items": dataset.items.fingerprint,
        "texts": texts.fingerprint,
        "embeddings": embeddings.fingerprint,
        "semantic_ids": made.ids.fingerprint,
    }
    return Prepared(made.ids, made.quality, inputs)
