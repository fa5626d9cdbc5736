"""Work in a process of its own, and the memory that a process holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")


def in_child(work: Callable[..., Found], *arguments: Any) -> Found:
    """``work(*arguments)`` in a fresh process, whose memory is nobody else's, with as many threads as here.

    Args:
        work: a function of a module, with arguments that can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # a fork would begin with this one's memory
        return pool.submit(_with_threads, torch.get_num_threads(), work, arguments).result()


def _with_threads(threads: int, work: Callable[..., Found], arguments: tuple[Any, ...]) -> Found:
    torch.set_num_threads(threads)
    return work(*arguments)


def peak_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """The most bytes that ``in_child`` takes at once, what ``work`` imports included."""
    return in_child(_peak_after, work, arguments)


def _peak_after(work: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    work(*arguments)
    return resident()[1]


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: now, and at most since it began.

    Linux tells both by process; ``getrusage`` would count what the parent had when it made this process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        if {"VmRSS", "VmHWM"} <= lines.keys():
            return 1024 * int(lines["VmRSS"].split()[0]), 1024 * int(lines["VmHWM"].split()[0])
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most
