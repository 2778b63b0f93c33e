"""A folder whose files appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnisparse.atomic import make_temporary_beside
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
    folder = make_temporary_beside(final)
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
