"""A signal to stop lets the step under way end, so that a run can go on from there (faults, row 15)."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class StopSignals:
    """Notes SIGINT and SIGTERM instead of ending the process; a second one ends it at once.

    Where a signal is not handled as Python does by itself, as in a search by Ray, it is left alone, as are all of them
    outside the main thread, and where nothing could be kept.

    Args:
        kept: whether there is something to keep before the end.

    Attributes:
        received: the signal that came.
    """

    def __init__(self, kept: bool = True) -> None:
        self.received: int | None = None
        self._taken = kept and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number, usual in USUAL.items() if self._taken else ():
            if signal.getsignal(number) == usual:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        before, self.received = self.received, number
        if before is not None:
            self.leave()

    def leave(self) -> None:
        """Raises what ends the process with the status that the signal has: 130 or 143."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.received or 0))
