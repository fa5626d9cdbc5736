"""A unified recommender that was trained before on the same input, found again by its content key."""

from __future__ import annotations

from dataclasses import asdict
from logging import getLogger
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from recbole_gmc.cache import Cache
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.files import hash_of, read_json, write_json
from recbole_gmc.places import cache_dir
from recbole_gmc.train.stage import Stage

if TYPE_CHECKING:
    from recbole_gmc.train.trainer import GMCTrainer

KIND = "unified"
VERSION = 2  # goes up when equal settings would train other weights
SETTINGS = (
    *("seed", "shuffle", "learner", "clip_grad_norm", "MAX_ITEM_LIST_LENGTH", "prefix_beta", "prefix_eta"),
    *("valid_metric", "topk", "beam_size", "beam_search", "decode_precision"),  # these choose the epoch
)


def key(trainer: GMCTrainer, stage: Stage, train: SequenceRows, watched: SequenceRows | None) -> str:
    """The hash of all that decides the weights: IDs, rows, initial weights, schedule, arithmetic, choice of epoch."""
    rows = [[part.cpu().numpy() for part in (r.history, r.target)] for r in (train, watched) if r is not None]
    arithmetic = [
        trainer.device.type,
        trainer.bf16,
        torch.__version__,
        trainer.settings.chunk_tokens,
        torch.get_num_threads(),
    ]
    settings = {name: trainer.config[name] for name in SETTINGS}
    start = trainer.model.starting_point()
    return hash_of("unified", VERSION, start, asdict(stage), settings, arithmetic, *[part for r in rows for part in r])


def reuse(trainer: GMCTrainer, name: str, found_key: str) -> bool:
    """Puts the weights in place if they are there; says so."""
    entry = Cache(cache_dir(trainer.config)).get(KIND, found_key)
    if entry is None:
        return False
    trainer.model.network.load_state_dict(load_file(entry / "model.safetensors"))
    facts = read_json(entry / "facts.json")
    trainer.record.curve += facts["curve"]
    trainer.record.spend(name, facts["seconds"])
    trainer.record.reused.append(name)
    getLogger("recbole_gmc.train").info("Unified recommender: reused from the cache (%s)", entry)
    return True


def keep(trainer: GMCTrainer, name: str, found_key: str) -> None:
    with Cache(cache_dir(trainer.config)).put(KIND, found_key) as folder:
        weights = {n: tensor.detach().cpu().clone().contiguous() for n, tensor in trainer.model.plain_state().items()}
        save_file(weights, folder / "model.safetensors")
        curve = [entry for entry in trainer.record.curve if entry["stage"] == name]
        write_json(folder / "facts.json", {"curve": curve, "seconds": trainer.record.seconds[name]})
