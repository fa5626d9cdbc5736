"""What an interrupted encoder has done so far, so that the next run goes on from there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from recbole_gmc.files import hash_of, new_file

SAVE_SECONDS = 20.0
SUFFIX = ".safetensors"

logger = getLogger("recbole_gmc.embed")


class Partial:
    """Rows of embeddings in a folder of small files, each named by the hash of its bytes.

    Rows are kept in memory for at most ``SAVE_SECONDS``; ``save`` writes them at once. A file that does not have
    the hash of its name is left out, so its rows are encoded again.

    Args:
        folder: belongs to one cache key, which stands for the texts, the encoder and the settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: dict[int, np.ndarray] = {}
        self._saved = time.monotonic()

    def load(self) -> dict[int, np.ndarray]:
        """Row -> float32 [D] of everything stored so far."""
        rows: dict[int, np.ndarray] = {}
        for path in sorted(self.folder.glob(f"[0-9a-f]*{SUFFIX}")):
            content = path.read_bytes()
            try:
                chunk = load(content) if hash_of(content) == path.name.removesuffix(SUFFIX) else None
            except SafetensorError:
                chunk = None
            if chunk is None:
                logger.warning("%s is damaged and left out: its items are embedded again", path)
                continue
            rows.update(zip(chunk["rows"].tolist(), chunk["vectors"], strict=True))
        return rows

    def add(self, rows: Mapping[int, np.ndarray]) -> None:
        self._waiting.update(rows)
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        if self._waiting:
            chunk = {"rows": np.array(list(self._waiting), np.int64), "vectors": np.stack(list(self._waiting.values()))}
            content = save(chunk)
            with new_file(self.folder / f"{hash_of(content)}{SUFFIX}", "wb") as file:
                file.write(content)
            self._waiting = {}
        self._saved = time.monotonic()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
