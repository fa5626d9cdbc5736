"""How long the run will take, measured on a few rows before it starts."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import torch
from recbole.utils import set_color

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.train.stage import Stage

if TYPE_CHECKING:
    from recbole_gmc.train.trainer import GMCTrainer

PROBE_ROWS = 512
PROBE_USERS = 64


def log(trainer: GMCTrainer, train: SequenceRows, watched: SequenceRows | None) -> None:
    """Logs how long the stages that are not done yet will take."""
    domains = trainer.model.items.domains

    def count(rows: SequenceRows | None, stage: Stage) -> int:
        if rows is None or stage.domain is None:
            return len(rows or ())
        return int((rows.domain == domains.index(stage.domain)).sum())

    left = [stage for stage in trainer.plan if stage.name not in trainer.record.done]
    plan = [(stage, count(train, stage), count(watched, stage)) for stage in left]
    if plan:
        first, total = seconds_left(trainer, plan, train)
        machine = f"{'bf16' if trainer.bf16 else 'fp32'} on {trainer.device.type}, {torch.get_num_threads()} threads"
        trainer.logger.info(
            set_color("Estimated time", "blue") + f": {told(first)} for the first epoch and its validation, at most "
            f"{told(total)} in all ({machine})"
        )


def seconds_left(trainer: GMCTrainer, stages: list[tuple[Stage, int, int]], rows: SequenceRows) -> tuple[float, float]:
    """Seconds for the stages, each with its training rows and validation users.

    Returns:
        Seconds of the first epoch with its validation, and of everything if no stage stops early. No weight and no
        random state changes.
    """
    adapters = trainer.model.adapters
    if adapters is not None:  # resumed: the backbone is frozen, and only a stage's own adapter has a gradient
        adapters.activate(stages[0][0].domain)
    with torch.random.fork_rng(devices=[trainer.device] if trainer.device.type == "cuda" else []):
        sample = rows.select(torch.randperm(len(rows))[:PROBE_ROWS].to(rows.target.device))
        trainer.backward(sample)  # warm-up: first calls allocate
        started = perf_counter()
        trainer.backward(sample)
        a_row = (perf_counter() - started) / len(sample)
        trainer.model.zero_grad(set_to_none=True)
        users = sample.select(torch.arange(min(PROBE_USERS, len(sample)), device=rows.target.device))
        started = perf_counter()
        trainer.rank(users)
        a_user = (perf_counter() - started) / len(users)
    if adapters is not None:
        adapters.activate(None)
    costs = [
        (stage.epochs * rows_ * a_row, stage.epochs // max(1, stage.eval_step) * users_ * a_user)
        for stage, rows_, users_ in stages
    ]
    first = stages[0][1] * a_row + stages[0][2] * a_user
    return first, sum(train + valid for train, valid in costs)


def told(seconds: float) -> str:
    """Example: ``told(5400)`` is ``'1 h 30 min'``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
