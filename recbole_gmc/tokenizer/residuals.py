"""What enters each level of the quantiser, for a sample of items: enough to look at what the levels tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from recbole_gmc.errors import CheckpointError
from recbole_gmc.files import new_file
from recbole_gmc.items import ItemIndex
from recbole_gmc.tokenizer.learned import Learned
from recbole_gmc.vectors import sample_rows

NAME = "residuals.safetensors"
MOST = 1000  # items of a domain

Residuals = Mapping[str, np.ndarray]  # domain -> float32 [L, items of the sample, d]


def sample(items: ItemIndex, learned: Learned, seed: int) -> dict[str, np.ndarray]:
    """Residuals of at most ``MOST`` items of each domain: level 1 has the latents, level l + 1 what l levels leave."""
    found = {}
    for domain in items.domains:
        rows = items.rows(domain)
        shown = rows.start + sample_rows(rows.stop - rows.start, MOST, seed)
        residual = np.asarray(learned.latents[shown], dtype=np.float32)
        levels = []
        for level, codebook in enumerate(learned.codebooks):
            levels.append(residual)
            residual = residual - codebook[learned.codes[shown, level]]
        found[domain] = np.stack(levels)
    return found


def write(path: str | Path, residuals: Residuals) -> None:
    """One tensor a domain."""
    with new_file(path, "wb") as file:
        file.write(save({domain: np.ascontiguousarray(part) for domain, part in residuals.items()}))


def read(path: str | Path) -> dict[str, np.ndarray]:
    """What ``write`` wrote; nothing where there is no such file.

    Raises:
        CheckpointError: a file of another form.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        found = load(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(f"not a safetensors file ({error})", str(path), "Run it again, or remove it") from error
    if any(part.ndim != 3 for part in found.values()) or len({len(part) for part in found.values()}) > 1:
        raise CheckpointError("does not hold residuals [levels, items, d]", str(path), "Run it again, or remove it")
    return found
