"""What a stopped run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recbole_gmc.files import hash_of
from recbole_gmc.train.epoch import Begun


@dataclass
class RunRecord:
    """The facts of a run that result.json reports, kept across resumes.

    ``curve`` has one entry an epoch (stage, epoch, loss, seconds) and ``valid`` where the epoch was validated.
    ``cpu_seconds`` and ``limited`` tell what ``budget_minutes`` counts, and that it ended a stage; ``begun`` what it
    had counted when a part of the work with a share of its own began.
    """

    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    begun: dict[str, float] = field(default_factory=dict)
    limited: bool = False

    def spend(self, what: str, seconds: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def facts(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of(cls, facts: dict[str, Any]) -> RunRecord:
        return cls(**facts)


@dataclass(frozen=True)
class StageState:
    """Where a stage stands between two of its steps; the weights of the checkpoint are its best ones, if it has any.

    Attributes:
        stage: its name.
        next_epoch: the first one that is not finished.
        cur_step: RecBole's count of validations without a better score.
        best_valid_score: ``None`` before the first validation, and without validation users.
        has_best: whether a validation has chosen weights.
        optimiser_steps: how many the optimiser took.
        batches, loss: what of ``next_epoch`` is done, as in ``Begun``.
        latest: the weights of the last step, which need not be the best ones.
        optimiser: what the optimiser remembers of each parameter.
    """

    stage: str
    next_epoch: int
    cur_step: int
    best_valid_score: float | None
    best_valid_result: dict[str, float] | None
    has_best: bool
    optimiser_steps: int
    latest: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    batches: int = 0
    loss: float = 0.0

    @classmethod
    def of(cls, trainer: Any, next_epoch: int, begun: Begun) -> StageState:
        """Of the stage that a ``StageTrainer`` is in."""
        return cls(
            stage=trainer.stage.name,
            next_epoch=next_epoch,
            cur_step=trainer.cur_step,
            best_valid_score=finite(trainer.best_valid_score),
            best_valid_result=trainer.best_valid_result,
            has_best=bool(trainer.best),
            optimiser_steps=trainer.scheduler.last_epoch,
            latest=trainer.snapshot(),
            optimiser=_optimiser_of(trainer.optimizer),
            batches=begun.batches,
            loss=begun.loss,
        )

    def put_back(self, trainer: Any) -> None:
        """Into a trainer that has just entered the stage and holds the checkpoint's weights."""
        trainer.start_epoch, trainer.cur_step = self.next_epoch, self.cur_step
        trainer.begun = Begun(self.batches, self.loss)
        trainer.best_valid_result = self.best_valid_result
        if self.best_valid_score is not None:
            trainer.best_valid_score = self.best_valid_score
        trainer.best = trainer.snapshot() if self.has_best else {}
        trainer.restore(self.latest)
        _put_optimiser(self.optimiser, self.optimiser_steps, trainer.optimizer, trainer.scheduler)


TENSORS = ("latest", "optimiser")  # of a stage's state
FACTS = tuple(item.name for item in fields(StageState) if item.name not in TENSORS)


@dataclass(frozen=True)
class Progress:
    """Where training stands, as a checkpoint keeps it: JSON-able facts and tensors."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, record: RunRecord, shuffle: torch.Generator, stage: StageState | None) -> Progress:
        """``stage`` is the one under way, ``None`` between two."""
        facts: dict[str, Any] = {"record": record.facts(), "stage": None}
        tensors = random_of(shuffle)
        if stage is not None:
            facts |= {name: getattr(stage, name) for name in FACTS}
            parts = {part: getattr(stage, part) for part in TENSORS}
            tensors |= {f"{part}.{name}": tensor for part, found in parts.items() for name, tensor in found.items()}
        return cls(facts, tensors)

    @property
    def record(self) -> RunRecord:
        return RunRecord.of(self.facts["record"])

    @property
    def stage(self) -> StageState | None:
        """The stage that was under way."""
        if self.facts["stage"] is None:
            return None
        parts = {part: under(self.tensors, f"{part}.") for part in TENSORS}
        return StageState(**{name: self.facts[name] for name in FACTS if name in self.facts}, **parts)


def seed_of(*parts: Any) -> int:
    """A seed that is told by these parts alone, and far from that of any others."""
    return int(hash_of(*parts)[:15], 16)


def random_of(shuffle: torch.Generator) -> dict[str, Tensor]:
    """The random states that training draws from: of shuffling, and torch's own, which dropout takes."""
    tensors = {"random.torch": torch.get_rng_state(), "random.shuffle": shuffle.get_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def put_random(tensors: Mapping[str, Tensor], shuffle: torch.Generator) -> None:
    """Shuffling and dropout go on where they stood; nothing else in training draws at random."""
    torch.set_rng_state(tensors["random.torch"])
    shuffle.set_state(tensors["random.shuffle"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _optimiser_of(optimiser: Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers of each parameter: ``<position>.<name>`` -> tensor."""
    states = optimiser.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, own in states.items() for name, value in own.items()}


def _put_optimiser(tensors: Mapping[str, Tensor], steps: int, optimiser: Optimizer, scheduler: LambdaLR) -> None:
    """The optimiser goes on after so many steps, at the learning rate that belongs there."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, what = name.split(".", 1)
        state.setdefault(int(index), {})[what] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    scheduler.last_epoch = steps
    rates = [base * scheduler.lr_lambdas[0](steps) for base in scheduler.base_lrs]
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate


def finite(score: float) -> float | None:
    """A score for JSON: without validation users there is none, and RecBole's is infinite then."""
    return score if math.isfinite(score) else None


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
