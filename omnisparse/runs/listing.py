"""A list of the runs in a folder, read without weights and without torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

from omnisparse.errors import OmnisparseError
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_record

FINISHED, TRAINING, STOPPED = "finished", "training", "stopped"
NO_CHECKPOINT, DAMAGED = "no checkpoint", "damaged"
LOCK = ".lock"
"""File of a run that its training locks."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run, for a list."""

    name: str
    run: str
    """Its folder."""
    latest: bool
    """Whether ``runs/latest`` links to it."""
    method: str | None
    """Row of a comparison for which it was trained, else its training method."""
    steps: int
    """Optimizer steps of its newest checkpoint."""
    max_steps: int | None
    """Optimizer steps of the whole run; None if no checkpoint has this number."""
    state: str
    """``finished``, ``training`` (a process has its lock), ``stopped``, ``no checkpoint`` or
    ``damaged``."""
    dev_wer: float | None
    """The last word error rate on its dev split, in percent; None where it was not measured."""
    parameters: int | None
    """Parameters of its net, including zeros."""
    size: str | None
    """Size for which it was trained; None for the whole net, and for a supernet (all sizes)."""
    date: str | None
    """Local time at which its newest checkpoint was written."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """How a training that starts now finds this run: new, continued or finished."""
        if self.state == FINISHED:
            return f"already finished ({self.steps:,} steps)"
        if self.date is None:
            return "new"
        of = "" if self.max_steps is None else f" of {self.max_steps:,}"
        return f"continued at step {self.steps:,}{of}"


def list_runs(folder: Path = runs.RUNS) -> list[RunSummary]:
    """The runs directly in ``folder``, the newest first; links are skipped.

    Raises:
        OmnisparseError: If ``folder`` is a file.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise OmnisparseError(f"{folder}: is not a directory; a folder of runs is expected")
    found = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    listed = [summarize(path) for path in sorted(found) if (path / "config.yaml").is_file()]
    return sorted(listed, key=lambda one: one.date or "", reverse=True)


def summarize(run: Path) -> RunSummary:
    """Read the summary of ``run``; damaged parts are left out, and its state is ``damaged``."""
    link = runs.RUNS / "latest"
    known: dict[str, Any] = {
        "name": run.name,
        "run": str(run),
        "latest": link.is_symlink() and link.resolve() == run.resolve(),
        "method": None,
        "steps": 0,
        "max_steps": None,
        "state": NO_CHECKPOINT,
        "dev_wer": _last_dev_wer(run / "metrics.jsonl"),
        "parameters": None,
        "size": None,
        "date": None,
    }
    try:
        if any((run / "checkpoints").glob("step-*")):
            known |= _read(run)
    except (OmnisparseError, OSError):
        known["state"] = DAMAGED
    if known["state"] != FINISHED and _is_held(run / LOCK):
        known["state"] = TRAINING
    return RunSummary(**known)


def _read(run: Path) -> dict[str, Any]:
    from omnisparse.artifact import MappedState

    description = runs.read_description(run)
    checkpoint, document = runs.newest_checkpoint(run)
    record = read_record(checkpoint)
    weights = MappedState(checkpoint / runs.WEIGHTS, order=description.parameters)
    steps = document["step"]
    max_steps = document["state"].get("record", {}).get("max_steps")
    written = datetime.fromtimestamp((checkpoint / "state.json").stat().st_mtime)
    return {
        "method": record.row or description.method,
        "steps": steps,
        "max_steps": max_steps,
        "state": FINISHED if max_steps is not None and steps >= max_steps else STOPPED,
        "parameters": sum(prod(weights[name].shape) for name in description.parameters),
        "size": record.size,
        "date": written.isoformat(sep=" ", timespec="milliseconds"),
    }


def _last_dev_wer(path: Path) -> float | None:
    """The newest ``dev/wer`` of ``metrics.jsonl``."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        if '"dev/wer"' in line:
            try:
                return float(json.loads(line)["dev/wer"])
            except (ValueError, KeyError, TypeError):
                continue  # incomplete line of a killed process
    return None


def _is_held(lock: Path) -> bool:
    """Whether a process has the lock. It is not requested here: that could block a new process."""
    try:
        inode = str(os.stat(lock).st_ino)
        held = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any("FLOCK" in line and f":{inode} " in line for line in held)
