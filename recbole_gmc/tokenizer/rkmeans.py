"""Residual k-means on principal components: the tokenizer without a network, and the bar for the one with it."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer.kmeans import fit_codebook, nearest
from recbole_gmc.tokenizer.learned import Learned

CHUNK = 8192


def fit_rkmeans(vectors: np.ndarray, settings: TokenizerSettings, seed: int) -> Learned:
    """PCA of ``vectors`` [items, D] to ``settings.dim``, then k-means on what each level leaves over."""
    mean, axes, total = principal_axes(vectors, settings.dim)
    latents = np.concatenate([(block - mean) @ axes for block in _blocks(vectors)]).astype(np.float32)
    scale = float(latents.std())
    residual, codebooks, codes = latents, [], []
    for level in range(settings.levels):
        codebook = fit_codebook(residual, settings.codebook_size, seed + level, scale)
        chosen = nearest(residual, codebook)
        residual = residual - codebook[chosen]
        codebooks.append(codebook)
        codes.append(chosen)
    # the axes are orthonormal: error = what lies outside of them + what the codes leave over
    outside = max(total - float((latents.astype(np.float64) ** 2).sum()), 0.0)
    lost = outside + float((residual.astype(np.float64) ** 2).sum())
    return Learned(
        codes=np.stack(codes, axis=1).astype(np.int32),
        latents=latents,
        codebooks=np.stack(codebooks),
        reconstruction=lost / total if total > 0 else 0.0,
    )


def principal_axes(vectors: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean [D], orthonormal axes [D, dim] (zero columns past D) and the summed squares about the mean."""
    count, width = vectors.shape
    mean = np.zeros(width)
    for block in _blocks(vectors):
        mean += block.sum(axis=0)
    mean /= max(count, 1)
    covariance = np.zeros((width, width))
    for block in _blocks(vectors):
        covariance += (block - mean).T @ (block - mean)
    kept = min(dim, width)
    axes = scipy.linalg.eigh(covariance, subset_by_index=(width - kept, width - 1))[1][:, ::-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(kept)])  # eigenvectors come with either sign
    axes = np.pad(axes * signs, ((0, 0), (0, dim - kept)))
    return mean, axes, float(np.trace(covariance))


def _blocks(vectors: np.ndarray):
    for start in range(0, len(vectors), CHUNK):
        yield np.asarray(vectors[start : start + CHUNK], dtype=np.float64)
