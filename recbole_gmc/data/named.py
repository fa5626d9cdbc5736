"""Files that settings name, which may change while their place stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_gmc.files import hash_file

NAMED = ("semantic_ids_path", "text_embedding_path", "word_drop_embedding_path")


def hash_named(settings: Mapping[str, Any], keys: Sequence[str] = NAMED) -> dict[str, str]:
    """``<key>: <file>`` -> SHA-256 of every file that these settings name, or that lies in a folder that they name.

    The tokens beside an ``.npy`` count with it. A folder of a text encoder is large and counts by its name, elsewhere.
    """
    found = {}
    for key in keys:
        given = settings.get(key)
        for place in given.values() if isinstance(given, Mapping) else [given] if given else []:
            path = Path(str(place)).expanduser()
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            if path.suffix == ".npy":
                files.append(path.with_suffix(".ids"))
            found |= {f"{key}: {file}": hash_file(file) for file in files if file.is_file()}
    return found
