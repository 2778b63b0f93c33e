"""Treating denormals as zero while a training lasts, and in no thread any longer.

Whether denormals are zero is a setting of each thread, and a new thread takes that of the one that
starts it. torch sets it for the calling thread only. So OpenMP's workers that start during a
training would go on flushing for as long as the process lives. Here the setting is made and undone
in every worker: libgomp, which torch's CPU wheels bring along, runs a function in each.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

_IN_THREAD = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Treat denormals as zero: those of a decayed LSTM state cost a factor in speed.

    Afterwards they are in every thread what they were; in one that has started meanwhile, what they
    were in the calling thread.
    """
    own = is_flushing()
    before: dict[int, bool] = {}

    def begin() -> None:
        before[threading.get_ident()] = is_flushing()
        torch.set_flush_denormal(True)

    def end() -> None:
        torch.set_flush_denormal(before.get(threading.get_ident(), own))

    on_every_thread(begin)
    try:
        yield
    finally:
        on_every_thread(end)


def is_flushing() -> bool:
    """Whether the calling thread treats denormals as zero."""
    smallest = sys.float_info.min
    return smallest * 0.5 == 0.0


def on_every_thread(function: Callable[[], None]) -> None:
    """Run ``function`` in the calling thread, and in OpenMP's workers where they can be reached.

    Args:
        function: Must not raise.
    """
    library = _openmp()
    if library is None or torch.get_num_threads() < 2:
        function()
        return
    library.GOMP_parallel(_IN_THREAD(lambda _: function()), None, torch.get_num_threads(), 0)


@cache
def _openmp() -> Any:
    """The libgomp that torch has loaded; None where it uses another OpenMP, or none."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        paths = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line}
        beside_torch = str(Path(torch.__file__).parents[1])
        path = next(path for path in sorted(paths) if path.startswith(beside_torch))
        library = ctypes.CDLL(path)
        library.GOMP_parallel.argtypes = [
            _IN_THREAD, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint,
        ]  # fmt: skip
        library.GOMP_parallel.restype = None
    except (OSError, StopIteration, AttributeError):
        return None
    return library
