"""Item text to embeddings: a local LSA, any transformers checkpoint, or ready files; computed once, then reused."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_gmc.cache import Cache
from recbole_gmc.embed.embeddings import TextEmbeddings, refuse_unusable
from recbole_gmc.embed.mapped import LazyVectors, MappedFile, lazily, stacked
from recbole_gmc.files import hash_of, write_json
from recbole_gmc.settings import TextSettings
from recbole_gmc.vectors import Vectors, blocks

if TYPE_CHECKING:
    import torch

    from recbole_gmc.data.text import ItemTexts
    from recbole_gmc.items import ItemIndex

__all__ = ["TextEmbeddings", "embed", "normalized", "refuse_missing"]

KIND = "embeddings"
FORMAT = 1

logger = getLogger("recbole_gmc.embed")


def refuse_missing(items: ItemIndex, settings: TextSettings) -> None:
    """Refuses what ``embed`` would refuse of the files it is to read, weights aside, before any work.

    Raises:
        EmbeddingError: ready files that do not fit the catalogue, or a checkpoint that is not there.
        SettingError: a ``text_embedding_path`` that lacks a domain.
    """
    if settings.path is not None:
        from recbole_gmc.embed import ready

        ready.read_all(items, settings.path)
    elif settings.encoder != "lsa":
        from recbole_gmc.embed import pretrained

        pretrained.located(settings.encoder)


def embed(
    texts: ItemTexts,
    settings: TextSettings,
    cache_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> TextEmbeddings:
    """Text embeddings of every item of every domain.

    Args:
        texts: one text an item, in the order of its ``ItemIndex``.
        settings: which encoder, or which ready files (``text_embedding_path`` wins over ``text_encoder``).
        cache_dir: where results are kept, under a key made of the items, the texts and the encoder's identity: kind,
            library version, the settings it heeds, and the checkpoint's files or commit. Ready files are read and
            checked each time instead.
        device: where a transformers encoder runs.
        progress: shows a progress bar.

    Raises:
        EmbeddingError: the encoder or a file gives a wrong row count, NaN or zero vectors, or cannot be read.
        SettingError: a ``text_embedding_path`` that lacks a domain.
    """
    if settings.path is not None:
        from recbole_gmc.embed import ready

        vectors = ready.read_all(texts.items, settings.path)
        logger.info("Text embeddings: %d x %d from text_embedding_path", *vectors.shape)
    else:
        vectors = _encoded(texts, settings, Cache(cache_dir), str(device), progress)
    return TextEmbeddings(texts.items, normalized(vectors, settings.normalize))


def normalized(vectors: Vectors, how: str) -> Vectors:
    """float32 [items, D]: as they are (``none``), rows of length 1 (``l2``), or columns of mean 0 and variance 1
    over all items of all domains (``standardize``; a constant column becomes 0). The change is made as rows are read.
    """
    if how == "none":
        return vectors
    if how == "l2":
        return lazily(vectors, _unit)
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(vectors)) / len(vectors)
    spread = np.sqrt(sum(((block - mean) ** 2).sum(axis=0) for _, block in blocks(vectors)) / len(vectors))
    spread = np.where(spread > 1e-12, spread, 1.0)
    return lazily(vectors, lambda rows: ((rows.astype(np.float64) - mean) / spread).astype(np.float32))


def _unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=-1, keepdims=True)).astype(np.float32)


def _encoded(texts: ItemTexts, settings: TextSettings, cache: Cache, device: str, progress: bool) -> Vectors:
    if settings.encoder == "lsa":
        from recbole_gmc.embed import lsa

        source = None
        identity = lsa.identity(settings)
    else:
        from recbole_gmc.embed import pretrained

        source = pretrained.find(settings, device)
        identity = source.identity
    key = hash_of({"format": FORMAT, "items": texts.items.fingerprint, "texts": texts.fingerprint}, identity)
    with cache.turn(KIND, key, "Text embeddings"):
        if (vectors := _stored(cache, key)) is not None:
            logger.info("Text embeddings: reused %d x %d of %s from %s", *vectors.shape, settings.encoder, cache.root)
            return vectors
        if source is None:
            vectors = lsa.encode(texts.texts, settings)
        else:
            vectors = source.encode(texts, cache.folder(f"{KIND}-partial", key), progress)
        refuse_unusable(texts.items, vectors, f"text_encoder {settings.encoder}")
        with cache.put(KIND, key) as folder:
            np.save(folder / "vectors.npy", vectors, allow_pickle=False)
            write_json(folder / "about.json", {"items": len(vectors), "dim": vectors.shape[1], "identity": identity})
        if source is not None:
            source.clear(cache.folder(f"{KIND}-partial", key))
    logger.info("Text embeddings: made %d x %d with %s, kept in %s", *vectors.shape, settings.encoder, cache.root)
    # What is stored is what every run uses, also when another process stored the same key first.
    stored = _stored(cache, key)
    return vectors if stored is None else stored


def _stored(cache: Cache, key: str) -> LazyVectors | None:
    folder = cache.get(KIND, key)
    # Read from the file as needed; whoever reads twice asks ``refuse_change`` at the end.
    return None if folder is None else stacked([(MappedFile(folder / "vectors.npy"), None)])
