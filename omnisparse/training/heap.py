"""Memory that a training step frees and the next one takes again."""

from __future__ import annotations

import ctypes
import sys
import time
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30
_LONG_STEP = 10.0


def keep_freed_memory() -> bool:
    """Let the C library keep up to 1 GiB of freed memory instead of giving it back at once.

    A step on a CPU frees and takes the same hundreds of megabytes again and again. By default
    glibc returns large blocks to the system, which then clears every page once more: 6 to 11 % of
    a step's CPU time (`benchmarks/training_step_cpu_2026-11.md`). Blocks above 32 MiB are
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


def give_back_freed_memory() -> None:
    """Freed memory goes back to the system, where the C library can be told so (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class BetweenSteps:
    """Gives freed memory back between long steps, so that it is not there at their peaks.

    What is kept for small blocks is of no use to the large ones that a long step takes, and is
    there beside them: half a gigabyte for a net of 100 M weights. To clear it once more takes about
    a quarter of a second a GiB, which steps of ten seconds do not notice.
    """

    def __init__(self) -> None:
        self._began: float | None = None

    def begin_step(self) -> None:
        """Call this where a step has taken no memory yet."""
        now = time.monotonic()
        if self._began is not None and now - self._began >= _LONG_STEP:
            give_back_freed_memory()
        self._began = now
