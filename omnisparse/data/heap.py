"""Memory that a process frees and takes again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Let the C library keep up to 1 GiB of freed memory instead of giving it back at once.

    A step on a CPU frees and takes the same hundreds of megabytes again and again, and so does
    who computes features. By default glibc returns large blocks to the system, which then clears
    every page once more: 6 to 11 % of a step's CPU time
    (`benchmarks/training_step_cpu_2026-11.md`), 40 % of that of features. Blocks above 32 MiB are
    returned as before.

    Returns:
        Whether the C library is glibc, so that this has an effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    wanted = ((_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_TRIM_THRESHOLD, _KEPT))
    return all(mallopt(option, value) == 1 for option, value in wanted)
