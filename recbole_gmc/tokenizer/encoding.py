"""Embeddings through a trained network, block by block: inputs, latents, codes and their error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_gmc.tokenizer.prefixes import distinct
from recbole_gmc.tokenizer.rqvae import RQVAE
from recbole_gmc.vectors import Vectors, as_slice, block_rows

MOST_ROWS = 4096  # of a block: what the network makes of it stays in the processor's cache


class Encoded:
    """The latents float32 [items, d] of ``vectors``, made for the rows asked for by the network's current state.

    Args:
        vectors: [items, D].
        mean: [D], taken off every vector before it enters the network.
        scale: what it is then divided by.
    """

    def __init__(self, model: RQVAE, vectors: Vectors, mean: np.ndarray, scale: float) -> None:
        self.model, self.vectors, self.scale = model, vectors, scale
        self.shape = len(vectors), model.quantizer.codebooks.shape[2]
        self.step = min(MOST_ROWS, block_rows(vectors.shape[1]))
        self._device = model.quantizer.codebooks.device
        self._mean = torch.from_numpy(mean.astype(np.float32)).to(self._device)

    def of(self, vectors: Vectors) -> Encoded:
        """Other vectors through the same network."""
        return Encoded(self.model, vectors, self._mean.cpu().numpy(), self.scale)

    def __len__(self) -> int:
        return len(self.vectors)

    def inputs(self, rows: slice | np.ndarray) -> Tensor:
        """What enters the network, float32 [rows, D] on its device."""
        rows = rows if isinstance(rows, slice) else as_slice(rows)
        block = np.asarray(self.vectors[rows], dtype=np.float32)
        if not block.flags.writeable:  # torch warns of what it may not write to, though nothing here does
            block = block.copy()
        return (torch.from_numpy(block).to(self._device) - self._mean).mul_(1 / self.scale)

    @torch.no_grad()
    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        latents = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        for start in range(0, len(rows), self.step):
            part = slice(start, start + self.step)
            latents[part] = self.model.encoder(self.inputs(rows[part])).cpu().numpy()
        return latents


@dataclass(frozen=True)
class Encoding:
    """Some items by one state of the network.

    Attributes:
        codes: int32 [n, L].
        squared_error: of the reconstructions, in the embeddings' own space, summed.
        residual_share: a level: the energy of its input residual over that of the latents.
        collision_rate: 1 - distinct IDs / items, IDs of different domains being different.
    """

    codes: np.ndarray
    squared_error: float
    residual_share: list[float]
    collision_rate: float


@torch.no_grad()
def encode_all(encoded: Encoded, rows: np.ndarray, domain_of_row: np.ndarray) -> Encoding:
    """Codes of the items ``rows``, and what they lose; ``domain_of_row`` [items] numbers the domains."""
    model = encoded.model
    model.eval()
    levels = len(model.quantizer.codebooks)
    codes, error, energy = np.empty((len(rows), levels), dtype=np.int32), 0.0, np.zeros(levels)
    for start in range(0, len(rows), encoded.step):
        part = slice(start, start + encoded.step)
        inputs = encoded.inputs(rows[part])
        quantized = model.quantizer(model.encoder(inputs))
        outputs = model.decoder(quantized.vectors)
        # blocks are short enough for sums in float32, and their sums are added in float64
        error += float((inputs - outputs).square_().sum()) * encoded.scale**2
        energy += quantized.residuals.square().sum(dim=(1, 2)).cpu().numpy()
        codes[part] = quantized.codes.cpu().numpy()
    ids = np.concatenate([domain_of_row[rows, None].astype(np.int32), codes], axis=1)
    share = (energy / max(energy[0], 1e-30)).tolist()
    return Encoding(codes, error, share, 1 - distinct(ids) / max(len(rows), 1))
