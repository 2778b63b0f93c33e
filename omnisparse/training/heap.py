"""Memory that a training step frees and the next one takes again."""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress

from omnisparse.data.heap import keep_freed_memory

__all__ = ["BetweenSteps", "give_back_freed_memory", "keep_freed_memory"]

_LONG_STEP = 10.0


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
