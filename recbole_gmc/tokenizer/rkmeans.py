"""Residual k-means on principal components: the tokenizer without a network, and the bar for the one with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer.kmeans import fit_codebook, nearest, sample_size
from recbole_gmc.tokenizer.learned import Learned
from recbole_gmc.vectors import Vectors, as_slice, block_slices, row_parts, sample_rows

OVERSAMPLE = 16  # more directions than asked for, so that the last of those asked for converge, too
ITERATIONS = 8


def fit_rkmeans(vectors: Vectors, settings: TokenizerSettings, seed: int) -> Learned:
    """PCA of ``vectors`` [items, D] to ``settings.dim``, then k-means on what each level leaves over.

    Axes and codebooks come from a sample of bounded size, codes and the error from all items, block by block.
    """
    mean, total = moments(vectors)
    shown = sample_rows(len(vectors), sample_size(settings.codebook_size), seed)
    latents = _Projected(vectors, mean, principal_axes(vectors, shown, mean, settings.dim, seed))
    residual = latents[shown]
    scale = float(residual.std())
    codebooks: list[np.ndarray] = []
    for level in range(settings.levels):
        codebooks.append(fit_codebook(residual, settings.codebook_size, seed + level, scale))
        residual = residual - codebooks[-1][nearest(residual, codebooks[-1])]
    codes = np.empty((len(vectors), settings.levels), dtype=np.int32)
    # the axes are orthonormal: error = what lies outside of them + what the codes leave over
    lost = total
    for rows in block_slices(len(vectors), vectors.shape[1]):
        residual = latents[rows]
        lost -= float((residual.astype(np.float64) ** 2).sum())
        for level, codebook in enumerate(codebooks):
            codes[rows, level] = nearest(residual, codebook)
            residual = residual - codebook[codes[rows, level]]
        lost += float((residual.astype(np.float64) ** 2).sum())
    reconstruction = max(lost, 0.0) / total if total > 0 else 0.0
    return Learned(codes, latents, np.stack(codebooks), reconstruction)


def moments(vectors: Vectors) -> tuple[np.ndarray, float]:
    """The mean [D] and the sum of squared distances from it, in one reading."""
    # about a point among them, as sums about 0 lose all digits where vectors lie far from it
    about = np.asarray(vectors[:1], dtype=np.float64)[0]
    total, squares = np.zeros_like(about), 0.0
    for rows in block_slices(len(vectors), vectors.shape[1]):
        block = np.asarray(vectors[rows], dtype=np.float64) - about
        total += block.sum(axis=0)
        squares += float(np.einsum("nd,nd->", block, block))
    shift = total / len(vectors)
    return about + shift, max(squares - len(vectors) * float(shift @ shift), 0.0)


def principal_axes(vectors: Vectors, shown: np.ndarray, mean: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Orthonormal axes [D, dim] (zero columns past D) along which the rows ``shown`` vary most about ``mean`` [D].

    By subspace iteration: the covariance [D, D] is applied, never made.
    """
    width = vectors.shape[1]
    kept = min(dim, width)
    columns = min(kept + OVERSAMPLE, width)

    def summed(term: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        centre = mean.astype(np.float32)
        parts = (np.asarray(vectors[rows], dtype=np.float32) - centre for _, rows in row_parts(shown, width))
        return sum(term(part).astype(np.float64) for part in parts)

    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, columns)))[0]
    if columns < width:
        for _ in range(ITERATIONS):
            start = basis.astype(np.float32)
            basis = np.linalg.qr(summed(lambda part: part.T @ (part @ start)))[0]  # noqa: B023
    last = basis.astype(np.float32)
    inside = summed(lambda part: (part @ last).T @ (part @ last))
    axes = basis @ np.linalg.eigh(inside)[1][:, ::-1][:, :kept]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(kept)])  # eigenvectors come with either sign
    return np.pad(axes * signs, ((0, 0), (0, dim - kept)))


class _Projected:
    """The latents float32 [items, d] of ``vectors`` along ``axes``, made for the rows asked for."""

    def __init__(self, vectors: Vectors, mean: np.ndarray, axes: np.ndarray) -> None:
        self.vectors, self.mean, self.axes = vectors, mean, axes
        self.shape = len(vectors), axes.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        latents = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        for place, part in row_parts(rows, self.vectors.shape[1]):
            latents[place] = (np.asarray(self.vectors[as_slice(part)], dtype=np.float64) - self.mean) @ self.axes
        return latents
