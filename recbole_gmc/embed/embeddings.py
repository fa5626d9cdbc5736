"""The value object between item text and semantic IDs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recbole_gmc.embed.mapped import LazyVectors
from recbole_gmc.errors import EmbeddingError
from recbole_gmc.files import hash_of
from recbole_gmc.items import ItemIndex
from recbole_gmc.vectors import Vectors, blocks, content

SHOWN = 10


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """One text embedding an item, in the rows of ``items``.

    Args:
        items: which items, in which order.
        vectors: float32 [items, D], finite: an array, or rows that stay on disk until they are asked for
            (``numpy.asarray`` reads them all).

    Raises:
        EmbeddingError: a wrong shape or dtype, or values that are not finite.
    """

    items: ItemIndex
    vectors: np.ndarray | LazyVectors

    def __post_init__(self) -> None:
        vectors = self.vectors
        if not isinstance(vectors, (np.ndarray, LazyVectors)) or vectors.dtype != np.float32:
            kind = getattr(vectors, "dtype", type(vectors).__name__)
            raise EmbeddingError(f"Text embeddings must be a float32 array, not {kind}")
        if vectors.ndim != 2 or len(vectors) != len(self.items) or vectors.shape[1] == 0:
            shape = list(vectors.shape)
            raise EmbeddingError(f"Text embeddings of shape {shape} do not fit the catalogue's {len(self.items)} items")
        refuse_rows(self.items, _rows_not_finite(vectors), "with NaN or infinite values")

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        return hash_of(self.items.fingerprint, content(self.vectors))

    def for_domain(self, domain: str) -> np.ndarray:
        """float32 [items of the domain, D]."""
        return self.vectors[self.items.rows(domain)]

    def refuse_change(self) -> None:
        """Raises ``EmbeddingError`` if a file that the vectors are read from was changed since it was checked."""
        if isinstance(self.vectors, LazyVectors):
            self.vectors.refuse_change()


def first_tokens(tokens: Iterable[str]) -> str:
    """The first ten tokens, and how many more there are, for an error message."""
    names = list(tokens)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def tokens_at(items: ItemIndex, rows: Iterable[int]) -> list[str]:
    """Item tokens of rows, with the domain in front when there are several."""
    tokens = [
        f"{domain}/{token}" if len(items.domains) > 1 else token
        for domain, names in items.tokens.items()
        for token in names
    ]
    return [tokens[row] for row in rows]


def refuse_rows(
    items: ItemIndex, bad: np.ndarray, what: str, where: str | None = None, mend: str | None = None
) -> None:
    """Raises ``EmbeddingError`` with the first ten tokens when any entry of ``bad`` (bool [items]) is set."""
    rows = np.flatnonzero(bad)
    if len(rows):
        names = first_tokens(tokens_at(items, rows.tolist()))
        mend = mend or "Mend the item's text or leave the item out"
        raise EmbeddingError(f"{len(rows)} text embeddings {what}: {names}", where, mend)


def refuse_unusable(items: ItemIndex, vectors: Vectors, where: str) -> None:
    """Refuses what an encoder or a file must not give: a wrong row count, NaN, infinite or all-zero rows.

    Raises:
        EmbeddingError: naming ``where`` and the first ten tokens.
    """
    if len(vectors.shape) != 2 or len(vectors) != len(items):
        shape = list(vectors.shape)
        raise EmbeddingError(f"embeddings of shape {shape} for {len(items)} items", where, "Give one row an item")
    zero = np.zeros(len(items), dtype=bool)
    for rows, block in blocks(vectors):
        zero[rows] = ~block.any(axis=1)
    refuse_rows(items, _rows_not_finite(vectors), "with NaN or infinite values", where)
    refuse_rows(items, zero, "that are all zero", where)


def _rows_not_finite(vectors: Vectors) -> np.ndarray:
    bad = np.zeros(len(vectors), dtype=bool)
    for rows, block in blocks(vectors):
        bad[rows] = ~np.isfinite(block).all(axis=1)
    return bad
