"""The most memory that work in a process of its own held at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def peak_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """The peak resident bytes of a fresh process, one thread, that imports what ``work`` needs and does it.

    Args:
        work: a function of a module, with arguments that can be pickled.
    """
    context = multiprocessing.get_context("spawn")  # a fork would begin with this process's memory
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_watched, work, arguments).result()


def _watched(work: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    torch.set_num_threads(1)
    work(*arguments)
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it started this process
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "VmHWM" in fields:
            return 1024 * int(fields["VmHWM"].split()[0])
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
