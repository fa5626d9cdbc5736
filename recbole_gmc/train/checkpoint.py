"""The checkpoint folder: safetensors weights, one peft folder a domain, JSON; whole or not at all, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recbole_gmc.embed.embeddings import TextEmbeddings
from recbole_gmc.errors import CheckpointError
from recbole_gmc.files import hash_file, read_json, standing
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.adapters import DomainAdapters
from recbole_gmc.model.copies import DomainCopies
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
            CheckpointError: the model of this checkpoint has none, or was trained on others.
        """
        if not self.has_ids:
            raise CheckpointError("it has no semantic IDs", str(self.folder), "Give the checkpoint of another model")
        found = SemanticIds.load(self._place / IDS)
        inputs = self.json("progress.json").get("record", {}).get("inputs", {})
        if found.fingerprint != inputs.get("semantic_ids", found.fingerprint):
            raise CheckpointError("its model was trained on other semantic IDs", str(self._place / IDS), RETRY)
        return found

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
