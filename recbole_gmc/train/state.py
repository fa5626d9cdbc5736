"""What a stopped run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recbole_gmc.train.checkpoint import Progress

if TYPE_CHECKING:
    from recbole_gmc.train.stages import StageTrainer


@dataclass
class RunRecord:
    """The facts of a run that result.json reports, kept across resumes.

    ``curve`` has one entry an epoch (stage, epoch, loss, seconds) and ``valid`` where the epoch was validated.
    ``cpu_seconds`` and ``limited`` tell what ``budget_minutes`` counts, and that it ended a stage.
    """

    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    limited: bool = False

    def spend(self, what: str, seconds: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def facts(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of(cls, facts: dict[str, Any]) -> RunRecord:
        return cls(**facts)


def take(trainer: StageTrainer, next_epoch: int, latest: dict[str, Tensor]) -> Progress:
    """The state at the end of an epoch or, with no stage under way, between stages."""
    facts: dict[str, Any] = {"record": trainer.record.facts(), "stage": None}
    tensors = {"random.torch": torch.get_rng_state(), "random.shuffle": trainer.shuffle.get_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    if trainer.stage is not None:
        facts["stage"] = trainer.stage.name
        facts["next_epoch"] = next_epoch
        facts["cur_step"] = trainer.cur_step
        facts["best_valid_score"] = trainer.best_valid_score if np.isfinite(trainer.best_valid_score) else None
        facts["best_valid_result"] = trainer.best_valid_result
        facts["has_best"] = bool(trainer.best)
        facts["optimiser_steps"] = trainer.scheduler.last_epoch
        tensors.update({f"latest.{name}": tensor for name, tensor in latest.items()})
        for index, state in trainer.optimizer.state_dict()["state"].items():
            tensors.update({f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in state.items()})
    return Progress(facts, tensors)


def _put_random(progress: Progress, trainer: StageTrainer) -> None:
    """Shuffling and dropout go on where they stood; nothing else in training draws at random."""
    torch.set_rng_state(progress.tensors["random.torch"])
    trainer.shuffle.set_state(progress.tensors["random.shuffle"])
    if "random.cuda" in progress.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(progress.tensors["random.cuda"])


def put_stage(progress: Progress, trainer: StageTrainer) -> None:
    """Counters, optimiser and latest weights of the stage that was under way; the loaded weights are its best."""
    facts = progress.facts
    _put_random(progress, trainer)
    trainer.start_epoch, trainer.cur_step = facts["next_epoch"], facts["cur_step"]
    trainer.best_valid_result = facts["best_valid_result"]
    if facts["best_valid_score"] is not None:
        trainer.best_valid_score = facts["best_valid_score"]
    trainer.best = trainer.snapshot() if facts["has_best"] else {}
    trainer.restore(_part(progress.tensors, "latest."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(progress.tensors, "optimiser.").items():
        index, what = name.split(".", 1)
        state.setdefault(int(index), {})[what] = tensor
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    trainer.scheduler.last_epoch = facts["optimiser_steps"]
    rates = [base * trainer.scheduler.lr_lambdas[0](facts["optimiser_steps"]) for base in trainer.scheduler.base_lrs]
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
