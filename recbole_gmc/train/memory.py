"""Freed memory stays with the process: a page that glibc gives back costs a fault when it is taken again.

torch takes every intermediate result from malloc and frees it within the step. glibc returns large blocks to the
system at once, so each step fetches the same pages anew.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h. The limits leave alone what is no intermediate result: the embeddings of a large catalogue.
TRIM_THRESHOLD, KEPT = -1, 2**31 - 1
MMAP_THRESHOLD, LARGEST = -3, 256 << 20


def keep_freed_memory() -> bool:
    """Asks malloc to keep what is freed, for the whole process; true if it will.

    Only glibc can be asked. Whoever sets ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_THRESHOLD_`` keeps their choice.
    """
    if sys.platform != "linux" or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, LARGEST))
