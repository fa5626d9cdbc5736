"""Text embeddings to semantic IDs (paper section 4.1): ``tokenize`` is the whole stage."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_gmc.errors import EmbeddingError, TokenizerError
from recbole_gmc.files import hash_of, read_json, write_json
from recbole_gmc.precision import resolved
from recbole_gmc.products import tokenizer_by_onednn
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer import index_file, quality, residuals
from recbole_gmc.tokenizer.assign import Assignment, make_unique, number_collisions, repair_codes
from recbole_gmc.tokenizer.kmeans import require_faiss
from recbole_gmc.tokenizer.learned import Learned
from recbole_gmc.tokenizer.rkmeans import fit_rkmeans
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

if TYPE_CHECKING:
    from recbole_gmc.embed.embeddings import TextEmbeddings

__all__ = ["SemanticIds", "Tokenization", "tokenize"]

VERSION = 4  # goes up when equal settings would give other IDs, or other figures of them
KIND = "semantic_ids"

logger = getLogger("recbole_gmc.tokenizer")


@dataclass(frozen=True)
class Tokenization:
    """Semantic IDs, the JSON-able figures that say how good they are, and a sample of what each level quantised.

    ``residuals`` is empty where IDs were imported.
    """

    ids: SemanticIds
    quality: dict
    residuals: residuals.Residuals = field(default_factory=dict)


def tokenize(
    embeddings: TextEmbeddings,
    settings: TokenizerSettings,
    *,
    seed: int,
    cache_dir: str | Path | None,
    device: str = "cpu",
    progress: bool = True,
) -> Tokenization:
    """Learns (or imports, or takes from the cache) one ID an item, unique inside its domain.

    Args:
        embeddings: float vectors [items, D] of all domains, quantised together.
        cache_dir: where equal embeddings, settings and seed are found again; ``None`` keeps nothing.

    Raises:
        TokenizerError: collapsed codebooks, items that cannot be told apart, or import files that do not fit.
        EmbeddingError: no items, or a file of embeddings that was changed meanwhile.
        DependencyError: faiss is needed and not installed.
    """
    if not len(embeddings.items):
        raise EmbeddingError("There are no items to tokenize", mend="Check the filters of the dataset")
    if settings.ids_path is not None:
        return _imported(embeddings, settings)
    # what decides the codes, and so stands in the cache's key
    here = torch.device(device)
    settings = replace(settings, precision=resolved(settings.precision, here))
    if settings.kind == "rqvae":
        settings = replace(settings, gemm="onednn" if tokenizer_by_onednn(settings.gemm, here) else "torch")
    if settings.kind == "rkmeans" or settings.kmeans_init:
        require_faiss()  # before any work
    if cache_dir is None:
        return _learned(embeddings, settings, seed, device, progress)

    from recbole_gmc.cache import Cache

    cache = Cache(cache_dir)
    machine = [here.type, torch.get_num_threads()]
    key = hash_of("tokenize", VERSION, embeddings.fingerprint, asdict(settings), seed, machine, _versions())
    with cache.turn(KIND, key, "Semantic IDs"):
        entry = cache.get(KIND, key)
        if entry is None:
            made = _learned(embeddings, settings, seed, device, progress)
            with cache.put(KIND, key) as folder:
                made.ids.save(Path(folder) / "ids")
                write_json(Path(folder) / "quality.json", made.quality)
                residuals.write(Path(folder) / residuals.NAME, made.residuals)
            return made
    logger.info("Semantic IDs: reused from the cache (%s)", entry)
    ids = SemanticIds.load(Path(entry) / "ids")
    # files hold domains by name; the embeddings' own index keeps the order of the run
    ids = replace(ids, items=embeddings.items)
    return Tokenization(ids, read_json(entry / "quality.json"), residuals.read(entry / residuals.NAME))


def _versions() -> dict[str, str]:
    """Of what decides the codes besides settings and data."""
    found = {}
    for name in ("torch", "faiss-cpu", "faiss-gpu", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _learned(
    embeddings: TextEmbeddings, settings: TokenizerSettings, seed: int, device: str, progress: bool
) -> Tokenization:
    start = time.perf_counter()
    items, vectors = embeddings.items, embeddings.vectors
    count = settings.collisions == "count"
    if count and settings.levels < 2:
        mend = "Set it to 2 or more, or tokenizer_collisions to move"
        raise TokenizerError("one level cannot hold codes and a counter", where="code_levels", mend=mend)
    quantised = replace(settings, levels=settings.levels - 1) if count else settings
    if settings.kind == "rkmeans":
        learned = fit_rkmeans(vectors, quantised, seed)
    else:
        from recbole_gmc.tokenizer.fit import fit_rqvae

        learned = fit_rqvae(items, vectors, quantised, seed=seed, device=device, progress=progress)
    if count:
        made = number_collisions(items, learned.codes, settings.codebook_size)
    else:
        made = make_unique(items, learned.codes, learned.latents, learned.codebooks)
    figures = _figures(embeddings, settings, learned, made.moved)
    sample = residuals.sample(items, learned, seed)
    embeddings.refuse_change()
    ids = SemanticIds(items, made.codes, settings.codebook_size)
    figures["seconds"] = round(time.perf_counter() - start, 2)
    _log(figures)
    return Tokenization(ids, figures, sample)


def _imported(embeddings: TextEmbeddings, settings: TokenizerSettings) -> Tokenization:
    start = time.perf_counter()
    items, vectors, size = embeddings.items, embeddings.vectors, settings.codebook_size
    codes = index_file.read_catalogue(settings.ids_path, items, size, settings.levels)
    given = Learned(codes, vectors, np.zeros(0), None)
    made = repair_codes(items, codes, size, vectors) if settings.ids_repair else Assignment(codes, np.zeros(len(items)))
    ids = SemanticIds(items, made.codes, size)
    figures = _figures(embeddings, settings, given, made.moved) | {"method": "import"}
    figures["seconds"] = round(time.perf_counter() - start, 2)
    logger.info("Semantic IDs: imported from %s, %d items moved", settings.ids_path, figures["moved_items"])
    return Tokenization(ids, figures)


def _figures(embeddings: TextEmbeddings, settings: TokenizerSettings, learned: Learned, moved: np.ndarray) -> dict:
    items, codes = embeddings.items, learned.codes
    rates = quality.collision_rates(items, codes)
    return {
        "method": settings.kind,
        "levels": settings.levels,
        "codebook_size": settings.codebook_size,
        "reconstruction_over_variance": learned.reconstruction,
        "collision_rate": quality.weighted(items, rates),
        "collision_rate_by_domain": rates,
        "equal_embeddings": quality.equal_embeddings(items, embeddings.vectors),
        "moved_items": int(moved.sum()),
        "unique_after": True,
        "codes_used": quality.codes_used(codes),
        "perplexity": quality.perplexity(codes),
        "domain_purity": quality.domain_purity(items, codes),
        "epochs": learned.epochs,
        "history": learned.history,
    }


def _log(figures: dict) -> None:
    logger.info(
        "Semantic IDs (%s): reconstruction / variance %.4f, collisions %.2f%% before the repair (%d items moved, "
        "unique after), codes used %s, %.1f s",
        figures["method"],
        figures["reconstruction_over_variance"],
        100 * figures["collision_rate"],
        figures["moved_items"],
        figures["codes_used"],
        figures["seconds"],
    )
