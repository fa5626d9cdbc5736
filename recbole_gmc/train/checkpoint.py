"""The checkpoint folder: safetensors weights, one peft folder a domain, JSON; whole or not at all, no pickle."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.errors import CheckpointError
from recbole_gmc.files import hash_file, new_folder, read_json, recover, standing, telling_where, write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.adapters import DomainAdapters
from recbole_gmc.model.copies import DomainCopies, DomainWeights
from recbole_gmc.places import POINTER
from recbole_gmc.tokenizer.semantic_ids import SemanticIds
from recbole_gmc.train.state import Progress

FORMAT = 1
MANIFEST = "manifest.json"
NEEDED = ("config.json", "model.safetensors", "progress.json", "progress.safetensors")
IDS = "semantic_ids"  # of the models that generate them; others have ITEMS instead
ITEMS = "items.json"
TEXT = "text.safetensors"  # rows in the order of the semantic IDs' items
MIX = "mix.json"
RETRY = "Take the checkpoint of another run, or train again"


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


def _of_run(folder: Path) -> Path:
    """The checkpoint folder that a run folder has or points to; any other folder is taken for one itself."""
    if folder.name != "checkpoint" and standing(folder / "checkpoint").is_dir():
        return folder / "checkpoint"
    if (folder / POINTER).is_file():
        try:
            return Path(read_json(folder / POINTER)["folder"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("the note is damaged", str(folder / POINTER), "Give the checkpoint folder") from error
    return folder


def _elsewhere(folder: Path) -> str:
    """What to give instead of a folder without a checkpoint."""
    if inside := sorted(str(part.parent) for part in folder.glob("domains/*/checkpoint")):
        return f"Each domain has its own: give one of {', '.join(inside)}"
    if theirs := sorted(map(str, folder.glob("checkpoint/*/*.pth"))):
        return f"RecBole's load_data_and_model takes its own models' files: {', '.join(theirs)}"
    return "Give a run folder or its checkpoint folder"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file; tensors that share memory are written apart."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


class Checkpoint:
    """A checkpoint folder whose every file was found to be as it was written.

    Reading changes nothing on disk, as a run may be writing there; what a killed one left goes at the next ``save``.

    Args:
        folder: a run folder or its checkpoint folder.

    Raises:
        CheckpointError: missing, of another format, or damaged (the file is named).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = _of_run(Path(folder))
        self._place = standing(self.folder)
        if not (self._place / MANIFEST).is_file():
            raise CheckpointError("no checkpoint here", str(folder), _elsewhere(Path(folder)))
        self._verify()
        self.config: dict[str, Any] = self.json("config.json")
        self.items = self._items()

    @classmethod
    def found(cls, folder: str | Path) -> Checkpoint | None:
        """The checkpoint there, or ``None`` where there is none that is whole."""
        try:
            return cls(folder)
        except CheckpointError:
            return None

    def _verify(self) -> None:
        try:
            manifest = read_json(self._place / MANIFEST)
            known, files = manifest["format"], dict(manifest["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("the manifest is damaged", str(self._place / MANIFEST), RETRY) from error
        if known != FORMAT:
            mend = "Use the version that wrote it"
            raise CheckpointError(f"format {known!r} is not {FORMAT}", str(self.folder), mend)
        for name, digest in files.items():
            path = self._place / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise CheckpointError(f"the manifest names a file outside: {name!r}", str(self.folder), RETRY)
            if not path.is_file():
                raise CheckpointError("the file is missing", str(path), RETRY)
            if hash_file(path) != digest:
                raise CheckpointError("the file is damaged: its hash is not the one written with it", str(path), RETRY)
        known = (*NEEDED, ITEMS if ITEMS in files else f"{IDS}/{MANIFEST}")
        if lacking := [name for name in known if name not in files]:
            raise CheckpointError(f"the manifest does not name {lacking[0]}", str(self._place / MANIFEST), RETRY)

    def _items(self) -> ItemIndex:
        if self.has_ids:
            return self.ids.items
        try:
            return ItemIndex({domain: tuple(tokens) for domain, tokens in self.json(ITEMS).items()})
        except TypeError as error:
            raise CheckpointError(f"not lists of tokens ({error})", str(self._place / ITEMS), RETRY) from error

    @property
    def has_ids(self) -> bool:
        """Whether the model generates semantic IDs."""
        return (self._place / IDS).is_dir()

    @cached_property
    def ids(self) -> SemanticIds:
        """The semantic IDs.

        Raises:
            CheckpointError: the model of this checkpoint has none.
        """
        if not self.has_ids:
            raise CheckpointError("it has no semantic IDs", str(self.folder), "Give the checkpoint of another model")
        return SemanticIds.load(self._place / IDS)

    @property
    def text(self) -> TextEmbeddings | None:
        """Text embeddings of the items, where the network reads them."""
        if not (self._place / TEXT).is_file():
            return None
        return TextEmbeddings(self.items, self.tensors(TEXT)["text"].numpy())

    @property
    def mix(self) -> dict[str, float] | None:
        """Domain -> weight of the dense head in the ranking, where there is one."""
        return self.json(MIX) if (self._place / MIX).is_file() else None

    def here(self) -> dict[str, Any]:
        """The settings of the run, with the places of today: its folder may have been moved or copied."""
        settings = dict(self.config)
        if self.folder.name == "checkpoint":
            if settings.get("checkpoint_dir") == settings.get("run_dir"):
                settings.pop("checkpoint_dir", None)
            settings["run_dir"] = str(self.folder.parent)
        return settings

    def weights(self) -> dict[str, Tensor]:
        return self.tensors("model.safetensors")

    def load_into(self, network: nn.Module, weights: Mapping[str, Tensor] | None = None) -> None:
        """Puts all weights, or these of them, into a network; raises CheckpointError where names or shapes differ."""
        try:
            network.load_state_dict(self.weights() if weights is None else weights)
        except RuntimeError as error:
            what = "the weights do not fit the network: " + " ".join(str(error).split())
            raise CheckpointError(what[:300], str(self._place / "model.safetensors"), RETRY) from error

    @property
    def adapters(self) -> Path | None:
        """Where the domains' adapters are, or their own weights."""
        folders = [self._place / kind.FOLDER for kind in (DomainAdapters, DomainCopies)]
        return next((folder for folder in folders if folder.is_dir()), None)

    def progress(self) -> Progress:
        return Progress(self.json("progress.json"), self.tensors("progress.safetensors"))

    def json(self, name: str) -> dict[str, Any]:
        try:
            return dict(read_json(self._place / name))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"not a JSON object ({error})", str(self._place / name), RETRY) from error

    def tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self._place / name)
        except SafetensorError as error:
            raise CheckpointError(f"not a safetensors file ({error})", str(self._place / name), RETRY) from error
