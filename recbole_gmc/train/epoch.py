"""The steps of an epoch, which may be stopped between any two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from recbole.utils import set_color
from tqdm import tqdm

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.train.signals import StopSignals


@dataclass(frozen=True)
class Begun:
    """How much of an epoch is done: batches, and the sum of the losses of their rows."""

    batches: int = 0
    loss: float = 0.0


NOTHING = Begun()


def take_steps(trainer: Any, rows: SequenceRows, epoch: int, begun: Begun, kept: bool, show_progress: bool) -> float:
    """Trains on all rows, once, in the order that the trainer's generator gives.

    Args:
        trainer: a ``StageTrainer`` in a stage.
        begun: what a stopped run has done of this epoch; its generator stands where it stood when the epoch began.
        kept: whether a checkpoint is written where a signal asks to stop, after the step under way.

    Returns:
        The mean loss over the rows.

    Raises:
        KeyboardInterrupt, SystemExit: a signal came.
        RunError: loss or gradient is not a number.
    """
    before = trainer.shuffle.get_state()
    count = len(rows)
    order = torch.randperm(count, generator=trainer.shuffle) if trainer.config["shuffle"] else torch.arange(count)
    batches = order.split(trainer.stage.batch_size)
    total = torch.full((), begun.loss, dtype=torch.float64, device=trainer.device)
    title, shown = set_color(f"Train {epoch:>5}", "pink"), {"initial": begun.batches, "total": len(batches)}
    bar = tqdm(batches[begun.batches :], ncols=100, desc=title, disable=not show_progress, **shown)
    with StopSignals(kept) as stop:
        for number, batch in enumerate(bar, begun.batches):
            trainer.optimizer.zero_grad(set_to_none=True)
            loss = trainer.backward(rows.select(batch.to(trainer.device)))
            trainer.update(loss, f"epoch {epoch}, batch {number}")
            total += loss * len(batch)
            if stop.received:
                trainer.shuffle.set_state(before)
                trainer.write(epoch, Begun(number + 1, total.item()))
                trainer.logger.info(f"Stopped after batch {number} of epoch {epoch}; --resume goes on from there")
                stop.leave()
    return (total / count).item()
