"""A limit on training time: once reached, no further epoch starts, and the best weights so far are tested."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Any


class BudgetReached(Exception):  # noqa: N818 - no error: it ends RecBole's loop over epochs, which asks nobody
    """No further epoch may start."""


class Budget:
    """CPU minutes of this process, all its threads together: waiting for other work on the machine costs nothing.

    Args:
        minutes: ``None`` sets no limit.
        spent: seconds that an interrupted run used before.
    """

    def __init__(self, minutes: float | None, spent: float = 0.0) -> None:
        self.minutes, self.reached = minutes, False
        self._started = process_time() - spent

    def spent(self) -> float:
        """Seconds so far."""
        return process_time() - self._started

    def share(self, parts: int) -> Budget:
        """An equal part of what is left, for one of so many parts of the work."""
        if self.minutes is None:
            return Budget(None)
        return Budget(max(0.0, self.minutes - self.spent() / 60) / parts)

    def part(self, parts: int, begun: float) -> Budget:
        """The same clock, stopped once an equal part is spent of what was left when the work began.

        Args:
            begun: what ``spent`` was then, also where a stopped run goes on in the middle of it.
        """
        if self.minutes is None:
            return self
        left = max(0.0, 60 * self.minutes - begun)
        return Budget((begun + left / parts) / 60, self.spent())

    def check(self) -> None:
        """Called where an epoch begins.

        Raises:
            BudgetReached: the time is up.
        """
        if self.minutes is not None and self.spent() >= 60 * self.minutes:
            self.reached = True
            raise BudgetReached

    def bind(self, trainer: Any) -> None:
        """Makes a Trainer of RecBole ask before every epoch."""
        train_epoch: Callable = trainer._train_epoch

        def asking(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return train_epoch(*args, **kwargs)

        trainer._train_epoch = asking
