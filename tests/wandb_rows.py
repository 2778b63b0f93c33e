"""What went to W&B, from the files of all its runs in a run directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from omnisparse.training.wandb_file import is_ended, read_history


def history_of(run: Path, *, patience: float = 60.0) -> list[tuple[int, dict[str, Any]]]:
    """Step and metrics of every row that went to W&B.

    Args:
        run: The run directory.
        patience: Seconds to wait for W&B's own process to end its newest file.
    """
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    deadline = time.monotonic() + patience
    while files and not is_ended(files[-1]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [row for path in files for row in read_history(path)]
