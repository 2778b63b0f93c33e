"""Atomic replacement of a directory or file: always either the old or the complete new one."""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from omnisparse.durable import replacing, sync_path
from omnisparse.errors import OmnisparseError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_synced(path: Path, data: bytes) -> None:
    """Create a file and sync it to the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths atomically; False if the system does not support it."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    paths = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)


def _put_in_place(new: Path, out: Path) -> None:
    if not out.exists():
        os.replace(new, out)
        return
    if not _exchange(new, out):
        old = new.with_name(new.name + ".old")
        os.replace(out, old)
        os.replace(new, out)
        shutil.rmtree(old)


def make_temporary_beside(final: Path) -> Path:
    """A new hidden folder beside ``final``, named after this process.

    Remains of processes of this machine that were killed are removed: of a large corpus, they
    would fill the disk.

    Args:
        final: Absolute path; its parent exists.

    Raises:
        OSError: If it cannot be made.
    """
    prefix = f".{final.name}.tmp-{platform.node()}-"  # on a shared disk, only those of this machine
    for stale in final.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_alive(stale.name.removeprefix(prefix).partition("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=final.parent))


def _is_alive(owner: str) -> bool:
    if not owner.isdigit():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def replaced_directory(out: Path, is_replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """An empty directory beside ``out`` to fill; it becomes ``out``. On failure nothing changes.

    A process killed half-way leaves a hidden ``.NAME.tmp-*`` directory, which may be deleted; the
    next one on this machine deletes it.

    Args:
        out: Final path. Its parents are created.
        is_replaceable: Whether an existing non-empty directory at ``out`` may be replaced.

    Raises:
        OmnisparseError: If ``out`` exists and may not be replaced, or writing fails.
    """
    out = Path(os.path.realpath(out))
    exists = out.exists()
    if exists and (not out.is_dir() or (any(out.iterdir()) and not is_replaceable(out))):
        raise OmnisparseError(f"{out} exists and is not an artifact; choose another place")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = make_temporary_beside(out)
    except OSError as error:
        raise OmnisparseError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        temporary.chmod(0o755)
        yield temporary
        sync_path(temporary)
        _put_in_place(temporary, out)
        sync_path(out.parent)
    except OSError as error:
        raise OmnisparseError(f"{out}: cannot be written ({error.strerror})") from error
    finally:
        # After an exchange this is the old artifact; after a failure, the unfinished one.
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replaced_file(out: Path) -> Iterator[Path]:
    """A path for a new file; on success it becomes ``out``, on failure nothing changes.

    Raises:
        OmnisparseError: If writing fails.
    """
    out = Path(os.path.realpath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            yield temporary
    except OSError as error:
        raise OmnisparseError(f"{out}: cannot be written ({error.strerror})") from error
