"""The semantic IDs of a run and what they were made of, found again from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from recbole_gmc.embed import KIND, normalized
from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.embed.mapped import MappedFile, stacked
from recbole_gmc.embed.ready import read_all
from recbole_gmc.errors import EmbeddingError, GMCError
from recbole_gmc.files import read_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.lookup import CACHE
from recbole_gmc.report.runs import Run
from recbole_gmc.settings import TextSettings, read
from recbole_gmc.tokenizer import index_file, quality, residuals

logger = getLogger("recbole_gmc.report")


@dataclass(frozen=True)
class Codes:
    """The IDs of all domains of a run: ``codes`` is int64 [items, L], row-aligned with ``items``."""

    items: ItemIndex
    codes: np.ndarray

    @property
    def levels(self) -> int:
        return self.codes.shape[1]

    def of_domain(self, domain: str) -> np.ndarray:
        return self.codes[self.items.rows(domain)]

    @property
    def purity(self) -> list[float]:
        """A level: the mean over its used codes of the largest domain's share of the code's items."""
        return quality.domain_purity(self.items, self.codes)

    def most_frequent(self, level: int, most: int) -> tuple[list[int], dict[str, list[int]]]:
        """The most frequent codes of a level, and how many items of each domain have them."""
        size = int(self.codes[:, level].max()) + 1
        counts = {d: np.bincount(self.of_domain(d)[:, level], minlength=size) for d in self.items.domains}
        total = np.sum(list(counts.values()), axis=0)
        first = np.argsort(-total, kind="stable")[:most]
        first = first[total[first] > 0]
        return first.tolist(), {domain: part[first].tolist() for domain, part in counts.items()}


def codes_of(run: Run) -> Codes | None:
    """The semantic IDs that a run left; ``None`` for a model without them.

    Raises:
        TokenizerError: a damaged file.
    """
    files = {domain: run.folder / "semantic_ids" / index_file.name_of(domain) for domain in run.domains}
    if not all(file.is_file() for file in files.values()):
        return None
    tables = {domain: index_file.read(file) for domain, file in files.items()}
    items = ItemIndex.of(tables)
    rows = [tables[domain][token] for domain, tokens in items.tokens.items() for token in tokens]
    return Codes(items, np.array(rows, np.int64)) if rows else None


def residuals_of(run: Run) -> residuals.Residuals:
    """Domain -> float32 [L, items of a sample, d]; empty for a run that kept none."""
    found = residuals.read(run.folder / residuals.NAME)
    return {domain: found[domain] for domain in run.domains if domain in found}  # in the order of all other figures


def embeddings_of(run: Run, items: ItemIndex) -> TextEmbeddings | None:
    """The text embeddings that a run made its IDs of, from the ready files or the cache that its settings name.

    They are taken only if their hash is the one that the run noted. ``None``, with a warning that says why, if not.
    """
    hashes = run.result.get("hashes", {})
    wanted = hashes.get("text_embeddings") or hashes.get("embeddings")  # of the text alone, where it is one part of two
    if not wanted:
        return None
    settings = read(TextSettings, run.settings)
    try:
        if settings.path is not None:
            found = TextEmbeddings(items, normalized(read_all(items, settings.path), settings.normalize))
            if found.fingerprint == wanted:
                return found
            why = "the files of text_embedding_path are not those that the run read"
        else:
            cache = Path(run.settings.get("cache_dir") or CACHE).expanduser()
            if (found := _in_cache(cache, items, settings, wanted)) is not None:
                return found
            why = f"its embeddings are not in {cache} any more"
    except GMCError as error:
        why = str(error)
    logger.warning(f"{run.name}: no code similarity, as {why}")
    return None


def _in_cache(cache: Path, items: ItemIndex, settings: TextSettings, wanted: str) -> TextEmbeddings | None:
    for file in sorted((cache / KIND).glob("*/vectors.npy")):
        if _about(file).get("items") != len(items):
            continue
        try:
            found = TextEmbeddings(items, normalized(stacked([(MappedFile(file), None)]), settings.normalize))
        except (EmbeddingError, ValueError, OSError, EOFError):  # damaged; a run sets it aside and makes it anew
            continue
        if found.fingerprint == wanted:
            return found
    return None


def _about(file: Path) -> Mapping[str, Any]:
    try:
        about = read_json(file.with_name("about.json"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
