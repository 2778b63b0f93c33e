"""Syncing written files to the disk, so that they survive a power failure."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SYNC_FILE_RANGE_WRITE = 2


def sync_path(path: Path) -> None:
    """Sync a file's content, or a directory's entries, to the disk.

    Raises:
        OSError: If it fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Give a path beside ``final`` to write a file to, and move it to ``final`` at the end.

    The file appears complete or not at all: if the body fails, ``final`` is unchanged.

    Args:
        final: Path of the file, with any suffix; its folder exists.

    Yields:
        Path to write, with the same suffix.
    """
    partial = final.with_name(f".{final.stem}.{os.getpid()}.part{final.suffix}")
    try:
        yield partial
        sync_path(partial)
        os.replace(partial, final)
        sync_path(final.parent)
    finally:
        partial.unlink(missing_ok=True)


def start_sync(descriptor: int) -> None:
    """Let the system start to write a file to the disk, without waiting for it.

    There is no guarantee; on Linux it makes a later ``os.fsync`` faster.
    """
    begin = _sync_file_range()
    if begin is not None:
        begin(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    found: Callable[[int, int, int, int], int] = function
    return found
