"""How much memory a training takes: of its device, or of this process on a CPU."""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from omnisparse.training.heap import give_back_freed_memory

_RESET_PEAK = "5"
"""Written to ``clear_refs``, it makes the present size the peak (proc(5))."""


class PeakMemory:
    """Watches the most memory that is taken from now on.

    On CUDA this is what torch has allocated, all that was there before included. On a CPU it is
    what of this process is in memory, above what is now: freed memory is first given back to the
    system, so that it is not taken again unseen.

    Args:
        device: The device of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        gc.collect()
        give_back_freed_memory()
        self._before = int(psutil.Process().memory_info().rss)
        with suppress(OSError):  # not Linux, or not allowed: then the peak is that of all time
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")

    @property
    def num_bytes(self) -> int:
        """Bytes at the peak."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return max(0, peak_resident_bytes() - self._before)


def peak_resident_bytes() -> int:
    """Most bytes of this process that were in memory at once."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
