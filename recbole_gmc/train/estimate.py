"""How long stages of training will take, from a few batches before they start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.train.stage import Stage

PROBE_ROWS, PROBE_USERS = 512, 256  # at most so many in one call that is timed
CALLS, ENOUGH = 3, 2.0  # that count: no further one after so many, or so many seconds

Work = Callable[[SequenceRows], Any]


@dataclass(frozen=True)
class Load:
    """What a stage goes through: the rows of an epoch, and the users of one validation."""

    stage: Stage
    rows: int
    users: int

    def seconds(self, row: float, user: float) -> float:
        """Of all epochs and their validations, for so many seconds a training row and a ranked user.

        One validation at least: the weights of a stage are held against those before it.
        """
        validations = max(1, self.stage.epochs // max(1, self.stage.eval_step))
        return self.stage.epochs * self.rows * row + validations * self.users * user


def of_stages(
    loads: Sequence[Load], train: Work, rank: Work, rows: SequenceRows, users: SequenceRows | None, device: torch.device
) -> tuple[float, float]:
    """Times ``train`` on batches of ``rows``, as large as the first stage's, and ``rank`` on some of ``users``.

    Returns:
        Seconds of the first stage's first epoch with its validation, and of all stages if none stops early. The
        random state is as before.
    """
    first = loads[0]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        row = seconds_each(train, rows, min(first.stage.batch_size, PROBE_ROWS), device)
        user = 0.0 if users is None else seconds_each(rank, users, PROBE_USERS, device)
    return first.rows * row + first.users * user, sum(load.seconds(row, user) for load in loads)


def seconds_each(work: Work, rows: SequenceRows, size: int, device: torch.device) -> float:
    """Seconds that ``work`` takes for each of ``size`` rows; the first call, which chooses kernels, does not count."""
    size = min(size, len(rows))
    if not size:
        return 0.0
    spent: list[float] = []
    while len(spent) < 2 or (len(spent) <= CALLS and sum(spent[1:]) < ENOUGH):
        sample = rows.select(torch.randperm(len(rows))[:size].to(rows.target.device))
        started = perf_counter()
        work(sample)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(perf_counter() - started)
    return median(spent[1:]) / size


def told(seconds: float) -> str:
    """Example: ``told(5400)`` is ``'1 h 30 min'``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
