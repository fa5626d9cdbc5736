"""Whether freed memory stays with the process, told by the system's own count of page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from recbole_gmc.train.memory import keep_freed_memory

def faults(repeats):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        torch.zeros(48 << 20, dtype=torch.uint8).fill_(1)  # above the most that glibc learns to keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
usual = faults(4)
print(keep_freed_memory())
faults(2)
print(usual, faults(4))
"""


def _run(**more: str) -> list[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | more
    done = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to keep freed memory")
def test_blocks_taken_again_cost_no_faults_once_memory_is_kept():
    kept, usual, now = _run()
    assert kept == "True"
    # Pages may be of 2 MiB, so even the usual way may fault only 24 times a block; kept memory faults on none.
    assert int(usual) >= 4 * 24
    assert int(now) < int(usual) / 10


def test_a_choice_of_the_user_stays():
    kept, *_ = _run(MALLOC_TRIM_THRESHOLD_="100000")
    assert kept == "False"
