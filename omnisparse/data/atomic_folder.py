"""A folder whose files appear complete or not at all."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnisparse.durable import sync_path


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Give a new folder beside ``final`` to write files into, and move it to ``final`` at the end.

    If ``final`` exists already, the new files replace those of the same name, in the order of their
    names, and all other files stay: it may be a folder of the user. If the body fails, ``final`` is
    unchanged. Remains of killed processes are removed.

    Args:
        final: Final path of the folder. Its parents are made.

    Yields:
        Path of the folder to fill; files only.
    """
    final = final.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{final.name}.tmp-{platform.node()}-"  # on a shared disk, only those of this machine
    for stale in final.parent.glob(f"{prefix}*"):
        if not _is_alive(stale.name.removeprefix(prefix).partition("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=final.parent))
    try:
        yield folder
        files = sorted(folder.iterdir())
        for file in files:
            sync_path(file)
        final.mkdir(exist_ok=True)
        for file in files:
            os.replace(file, final / file.name)
        sync_path(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
