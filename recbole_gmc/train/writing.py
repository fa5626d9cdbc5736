"""A checkpoint folder, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.files import hash_file, new_folder, read_json, recover, standing, telling_where, write_json
from recbole_gmc.model.copies import DomainWeights
from recbole_gmc.places import POINTER
from recbole_gmc.tokenizer.semantic_ids import SemanticIds
from recbole_gmc.train.checkpoint import FORMAT, IDS, MANIFEST, MIX, TEXT
from recbole_gmc.train.state import Progress


@dataclass(frozen=True)
class Constant:
    """A file of tensors that training does not change, and the hash of what it holds.

    It is written once: the checkpoints that follow have it as a link, so each folder is whole, and so are its copies.
    """

    fingerprint: str
    tensors: Callable[[], Mapping[str, Tensor]]


def write(
    folder: Path,
    *,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    progress: Progress,
    parts: Callable[[Path], None],
    constants: Mapping[str, Constant] = MappingProxyType({}),
) -> None:
    """Writes the folder beside its place and moves it there; the one before stays whole until then.

    Args:
        parts: writes what only this kind of model has into the folder it is given.
        constants: file name -> what the checkpoint before may have already.

    Raises:
        RunError: the disk is full or the folder read-only.
    """
    mend = "Free some space, or name another run_dir or checkpoint_dir"
    if standing(folder).is_dir():
        mend = "The last good checkpoint there is untouched: free some space, then go on with --resume"
    with telling_where(folder, mend):
        recover(folder)
        with new_folder(folder) as work:
            write_json(work / "config.json", dict(config))
            parts(work)
            save_tensors(work / "model.safetensors", weights)
            write_json(work / "progress.json", progress.facts)
            save_tensors(work / "progress.safetensors", progress.tensors)
            linked = {name: _linked(folder, work, name, constant) for name, constant in constants.items()}
            for name in (name for name, digest in linked.items() if digest is None):
                save_tensors(work / name, constants[name].tensors())
            _write_manifest(work, linked, constants)


def _write_manifest(work: Path, linked: Mapping[str, str | None], constants: Mapping[str, Constant]) -> None:
    """The hash of every file; ``linked`` holds those that are known already."""
    names = {str(path.relative_to(work)): path for path in sorted(work.rglob("*")) if path.is_file()}
    files = {name: linked.get(name) or hash_file(path) for name, path in names.items()}
    manifest: dict[str, Any] = {"format": FORMAT, "files": files}
    if constants:
        manifest["constants"] = {name: constant.fingerprint for name, constant in constants.items()}
    write_json(work / MANIFEST, manifest)


def _linked(folder: Path, work: Path, name: str, constant: Constant) -> str | None:
    """Links the file of the checkpoint before if it holds the same, undamaged; some file systems have no links.

    Returns:
        The file's hash; ``None`` if it has to be written.
    """
    try:
        before = read_json(folder / MANIFEST)
        digest = hash_file(folder / name)
        if before["constants"][name] != constant.fingerprint or digest != before["files"][name]:
            return None
        os.link(folder / name, work / name)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest


def save(
    folder: Path,
    *,
    config: Mapping[str, Any],
    ids: SemanticIds,
    t5: Mapping[str, Tensor],
    adapters: DomainWeights | None,
    progress: Progress,
    text: TextEmbeddings | None = None,
    mix: Mapping[str, float] | None = None,
) -> None:
    """Writes the checkpoint of a model that generates semantic IDs.

    Args:
        text: embeddings of the items that ``ids`` are for, where the network reads them.
        mix: domain -> weight of the dense head in the ranking, where there is one.
    """

    def parts(work: Path) -> None:
        ids.save(work / IDS)
        if mix is not None:
            write_json(work / MIX, dict(mix))
        if adapters is not None:
            adapters.save(work / adapters.FOLDER)

    constants = {}
    if text is not None:
        rows = text.vectors
        constants[TEXT] = Constant(text.fingerprint, lambda: {"text": torch.from_numpy(np.asarray(rows))})
    write(folder, config=config, weights=t5, progress=progress, parts=parts, constants=constants)


def point(run: Path, folder: Path) -> None:
    """Leaves a note in a run folder whose checkpoint the user keeps elsewhere."""
    if folder != run / "checkpoint":
        write_json(run / POINTER, {"folder": str(folder.absolute())})


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file; tensors that share memory are written apart."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)
