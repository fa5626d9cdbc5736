"""Latent semantic analysis: text embeddings with no download (TF-IDF and truncated SVD by scikit-learn)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import sklearn
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from recbole_gmc.settings import TextSettings

RARE_WORDS_FROM = 1000
SMALLEST_NORM = 1e-6


def identity(settings: TextSettings) -> dict:
    """What the result depends on besides the texts."""
    version = sklearn.__version__
    return {"encoder": "lsa", "dim": settings.lsa_dim, "features": settings.lsa_features, "sklearn": version}


def encode(texts: Sequence[str], settings: TextSettings) -> np.ndarray:
    """LSA vectors of texts: float32 [texts, min(text_lsa_dim, features - 1, texts - 1)].

    Words and word pairs, sublinear TF-IDF with unit rows, then the leading right singular vectors; catalogues of
    1,000 items or more leave out what occurs in a single text. A text with nothing in common with the space (no
    known word, or only words outside the leading directions) would be a zero vector: it gets a random projection
    of its character trigrams instead, of the others' length (root mean square).
    Its direction depends on the text alone, so equal texts stay equal and similar ones near.
    """
    matrix = _tfidf(texts, settings.lsa_features)
    if matrix is None:
        vectors = np.zeros((len(texts), settings.lsa_dim))
    elif matrix.shape[1] == 1:
        vectors = matrix.toarray()
    else:
        dim = max(1, min(settings.lsa_dim, matrix.shape[1] - 1, matrix.shape[0] - 1))
        # One thread: sums in another order would move the last bits from machine load to machine load.
        with threadpool_limits(1):
            vectors = TruncatedSVD(dim, n_iter=7, random_state=0).fit_transform(matrix)
    norms = np.linalg.norm(vectors, axis=1)
    empty = norms < SMALLEST_NORM
    if empty.any():
        length = np.sqrt(np.mean(norms[~empty] ** 2)) if not empty.all() else 1.0
        for row in np.flatnonzero(empty):
            vectors[row] = length * _trigrams(texts[row], vectors.shape[1])
    return vectors.astype(np.float32)


def _tfidf(texts: Sequence[str], features: int) -> csr_matrix | None:
    for rarest in (2, 1) if len(texts) >= RARE_WORDS_FROM else (1,):
        words = TfidfVectorizer(
            token_pattern=r"(?u)\b\w+\b",
            ngram_range=(1, 2),
            min_df=rarest,
            max_features=features,
            sublinear_tf=True,
        )
        try:
            return words.fit_transform(texts)
        except ValueError as error:  # no word at all, or none left after the rare ones went
            if not any(word in str(error) for word in ("empty vocabulary", "no terms remain")):
                raise
    return None


def _trigrams(text: str, dim: int) -> np.ndarray:
    """A unit vector [dim] from a text's character trigrams: the sum of one fixed sign vector a trigram."""
    padded = f"  {text.casefold()} "
    total = np.zeros(dim)
    for start in range(len(padded) - 2):
        digest = hashlib.shake_256(padded[start : start + 3].encode("utf-8", "surrogatepass")).digest(dim // 8 + 1)
        bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:dim]
        total += 2.0 * bits - 1.0
    # An even number of trigrams can cancel in every direction when dim is tiny.
    return total / norm if (norm := np.linalg.norm(total)) else np.full(dim, dim**-0.5)
