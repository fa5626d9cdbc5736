"""RecBole's Config as JSON and back, so that no checkpoint of ours holds a pickled object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from recbole.config import Config

from recbole_gmc.errors import CheckpointError
from recbole_gmc.flags import only_program_name

# What RecBole derives again when it builds a Config, or what belongs to one process.
DERIVED = frozenset(
    """MODEL_TYPE MODEL_INPUT_TYPE eval_type device data_path single_spec local_rank valid_metric_bigger
    train_neg_sample_args valid_neg_sample_args test_neg_sample_args resume config_files model dataset""".split()
)

# What may differ where a run goes on: places, whose content is checked, what is shown, the device, and the time it has.
MOVABLE = DERIVED | frozenset(
    """run_dir cache_dir checkpoint_dir text_embedding_path word_drop_embedding_path semantic_ids_path show_progress
    state log_wandb wandb_project use_gpu gpu_id worker budget_minutes""".split()
)

GONE = ("alignment_weight", "alignment_temperature", "tokenizer_adam_beta2", "ids_per_item")  # of earlier checkpoints


def to_json(config: Config) -> dict[str, Any]:
    """Every setting that a run can be repeated from; ``data_path`` is the folder that holds the domains."""
    values = {k: plain(v) for k, v in sorted(config.final_config_dict.items()) if k not in DERIVED}
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "data_path": os.path.dirname(os.path.normpath(config["data_path"])),
        **{key: value for key, value in values.items() if value is not ...},
    }


def from_json(values: Mapping[str, Any], **changes: Any) -> Config:
    """The Config that ``to_json`` was taken from, with some keys changed; flags of the program around count nothing."""
    rest = {k: v for k, v in values.items() if k not in ("model", "dataset", *GONE)}
    with only_program_name():
        return Config(model=values["model"], dataset=values["dataset"], config_dict={**rest, **changes})


def refuse_other(there: Mapping[str, Any], config: Config, folder: str) -> None:
    """Raises ``CheckpointError`` where a run is to go on with a setting that is not its own (faults, row 18).

    Args:
        there: of the checkpoint in ``folder``, as ``to_json`` gave it.
    """
    here = to_json(config)
    for name in sorted((there.keys() & here.keys()) - MOVABLE):
        if there[name] != here[name]:
            what = f"it was made with {name}: {there[name]!r}, not {here[name]!r}"
            raise CheckpointError(what, folder, "Go on with its own settings, or start a new run")


def plain(value: Any) -> Any:
    """JSON-able values as they are; ``...`` for what is not."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        parts = [plain(part) for part in value]
        return ... if ... in parts else parts
    if isinstance(value, Mapping):
        parts = {str(key): plain(part) for key, part in value.items()}
        return ... if ... in parts.values() else parts
    return ...
