"""A unified recommender that was trained before on the same input, found again by its content key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_gmc.cache import Cache
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.files import hash_of, read_json, write_json
from recbole_gmc.train.stage import Stage

KIND = "unified"
VERSION = 3  # goes up when equal settings would train other weights
SETTINGS = (
    *("seed", "shuffle", "learner", "clip_grad_norm", "gemm", "MAX_ITEM_LIST_LENGTH", "prefix_beta", "prefix_eta"),
    *("valid_metric", "topk", "beam_size", "beam_search", "decode_precision"),  # these choose the epoch
)


@dataclass(frozen=True)
class Unified:
    """Trained weights of the plain network, and how training went."""

    weights: Mapping[str, Tensor]
    curve: list[dict[str, Any]]
    seconds: float


def key(
    start: Sequence[Any],
    stage: Stage,
    settings: Mapping[str, Any],
    arithmetic: Sequence[Any],
    rows: Sequence[SequenceRows],
) -> str:
    """The hash of all that decides the weights.

    Args:
        start: IDs, initial weights, and what else the model reads.
        settings: the values of ``SETTINGS``.
        rows: those that train and those that validate.
    """
    parts = [part.cpu().numpy() for one in rows for part in (one.history, one.target)]
    return hash_of("unified", VERSION, list(start), asdict(stage), dict(settings), list(arithmetic), *parts)


def turn(cache: Path, found_key: str) -> AbstractContextManager[None]:
    """Held while it is looked for and made, so that trials side by side train it once."""
    return Cache(cache).turn(KIND, found_key, "Unified recommender")


def get(cache: Path, found_key: str) -> Unified | None:
    """What was trained under this key; says so."""
    entry = Cache(cache).get(KIND, found_key)
    if entry is None:
        return None
    facts = read_json(entry / "facts.json")
    getLogger("recbole_gmc.train").info("Unified recommender: reused from the cache (%s)", entry)
    return Unified(load_file(entry / "model.safetensors"), facts["curve"], facts["seconds"])


def put(cache: Path, found_key: str, made: Unified) -> None:
    """Keeps it under its key."""
    with Cache(cache).put(KIND, found_key) as folder:
        weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in made.weights.items()}
        save_file(weights, folder / "model.safetensors")
        write_json(folder / "facts.json", {"curve": made.curve, "seconds": made.seconds})
