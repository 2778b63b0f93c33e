"""Taking a run directory: found or made, and held by one training at a time."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from omnisparse.config import (
    ConfigError,
    RunConfig,
    config_from_dict,
    config_to_dict,
    config_to_yaml,
)
from omnisparse.config.yaml_core import read_yaml
from omnisparse.durable import replacing
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.runs import directory as runs
from omnisparse.runs.listing import LOCK
from omnisparse.runs.record import make_record
from omnisparse.runs.trained_on import FILE as CORPUS_FILE
from omnisparse.training.checkpoint import list_checkpoints, read_state
from omnisparse.training.tracking import Metrics, flatten

try:
    import fcntl
except ImportError:  # Windows: two trainings of one run directory are the user's to avoid
    fcntl = None  # type: ignore[assignment]

_EARLY_FILES = (
    "tokenizer.model", "tokens.txt", "model.json", "metrics.jsonl", "wandb-id", "wandb-sent",
    "left_out.jsonl", CORPUS_FILE,
)  # fmt: skip
"""What a training writes before its first checkpoint."""


class RunDirectoryError(OmnisparseError):
    """A run directory that cannot be used; the main process finds it out for all."""

    on_every_process = True


@contextmanager
def claimed_run(
    config: RunConfig,
    out: Path | None,
    accelerator: Accelerator,
    stage: Callable[[str], None],
    *,
    row: str | None,
    size: str | None,
    accept_changes: bool = False,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Find or make the run directory and hold it; the main process decides for all.

    Args:
        config: The run configuration.
        out: The directory asked for; None for ``runs/<name>``.
        accelerator: The processes.
        stage: Told when another training has to be waited for, and which directories are taken.
        row: As of :func:`omnisparse.runs.record.make_record`.
        size: As there.
        accept_changes: Go on where a net that the configuration names (``init``, a teacher) or a
            tokenizer is another one than when the run began.

    Yields:
        The directory, and the record for its checkpoints.

    Raises:
        RunDirectoryError: If the directory or a run that the configuration names cannot be used.
    """
    chosen: list[Any] = [None, {}, None]
    lock: IO[str] | None = None
    if accelerator.is_main_process:
        try:
            record = make_record(config, row=row, size=size, commit=_commit())
            run, lock = _hold_run(config, out, stage, may_wait=accelerator.num_processes == 1)
            check_starts(run, record, stage, accept_changes=accept_changes)
            chosen[:2] = str(_make_run(run, config)), record
        except (OmnisparseError, OSError) as error:
            chosen[2] = str(error)
    try:
        if accelerator.num_processes > 1:
            broadcast_object_list(chosen)
        if chosen[2] is not None:
            raise RunDirectoryError(chosen[2])
        yield Path(chosen[0]), chosen[1]
    finally:
        if lock is not None:
            lock.close()


def _hold_run(
    config: RunConfig, out: Path | None, stage: Callable[[str], None], *, may_wait: bool
) -> tuple[Path, IO[str] | None]:
    """Choose a directory and lock it."""
    while True:
        run = _choose_run(config, out, stage)
        run.mkdir(parents=True, exist_ok=True)
        lock = _lock(run, stage, may_wait=may_wait)
        if _differing_key(run, config_to_dict(config)) is None:
            return run, lock
        if lock is not None:  # whoever was waited for has made another run of it
            lock.close()


def _lock(run: Path, stage: Callable[[str], None], *, may_wait: bool) -> IO[str] | None:
    """Hold ``run`` for this process; the system lets go of it even where the process is killed.

    Raises:
        RunDirectoryError: If another process trains it and ``may_wait`` is false.
    """
    if fcntl is None:
        return None
    file = (run / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not may_wait:
            file.close()
            raise RunDirectoryError(f"{run}: another process is training it") from None
        stage(f"waiting for another process that trains {run}")
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _choose_run(config: RunConfig, out: Path | None, stage: Callable[[str], None]) -> Path:
    document = config_to_dict(config)
    if out is not None:
        out = out.resolve()  # `runs/latest` means the run, not the link
        differing = _differing_key(out, document)
        if differing is not None:
            raise OmnisparseError(f"{out}: holds a run of another configuration ({differing})")
        return out
    number = 1
    while True:
        run = runs.RUNS / (config.name if number == 1 else f"{config.name}-{number}")
        differing = _differing_key(run, document)
        if differing is None:
            return run
        stage(f"{run} holds another run: {differing}")
        number += 1


def check_starts(
    run: Path, record: dict[str, Any], stage: Callable[[str], None], *, accept_changes: bool
) -> None:
    """Compare the nets that a run starts from or learns from with those of its newest checkpoint.

    Raises:
        OmnisparseError: If one is another now and ``accept_changes`` is false; names it.
    """
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        return
    try:
        before = read_state(checkpoints[-1])["state"].get("record", {}).get("starts", {})
    except FormatError:
        return  # loading falls back to the checkpoint before it, or says what is wrong
    changed = [
        f"{key} was {before[key]} and is {now}"
        for key, now in record["starts"].items()
        if before.get(key, now) != now
    ]
    refuse_changes(run, changed, stage, accept_changes=accept_changes)


def refuse_changes(
    run: Path, changed: Sequence[str], stage: Callable[[str], None], *, accept_changes: bool
) -> None:
    """Refuse to go on with a run whose data or nets are others now, or tell where it is asked for.

    Raises:
        OmnisparseError: Naming what has changed, and what can be done.
    """
    if not changed:
        return
    what = "; ".join(changed)
    if not accept_changes:
        raise OmnisparseError(
            f"{run}: what it is trained on has changed since it began: {what}; legal: the old "
            "data, a new run (another name, or --out), or --accept-changes to go on with the new"
        )
    stage(f"{run} goes on with what has changed since it began: {what}")


def _make_run(run: Path, config: RunConfig) -> Path:
    if not list_checkpoints(run / "checkpoints"):
        for stale in _EARLY_FILES:
            (run / stale).unlink(missing_ok=True)
    with replacing(run / "config.yaml") as partial:
        partial.write_text(config_to_yaml(config), encoding="utf-8")
    return run


def _differing_key(run: Path, document: dict[str, Any]) -> str | None:
    """Name what keeps ``run`` from being used for ``document``; None if nothing does."""
    if not run.exists() or (run.is_dir() and not any(p.name != LOCK for p in run.iterdir())):
        return None
    if (run / "config.yaml").is_file() and not list_checkpoints(run / "checkpoints"):
        if fcntl is None or (run / LOCK).exists():
            return None  # it failed before its first checkpoint: nothing of it is worth keeping
        return "files that no training left there"
    try:
        existing = read_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return "it has no readable config.yaml"
    if not isinstance(existing, dict):
        return "it has no readable config.yaml"
    with suppress(ConfigError):  # else its own words are compared
        existing = config_to_dict(config_from_dict(existing))  # newer keys have their defaults
    old, new = flatten(existing), flatten(document)
    for key in [*new, *old]:
        if key.startswith("tracking.") or key == "training.threads":
            continue  # where metrics go and how many cores are used do not change a run
        if old.get(key) != new.get(key):
            return f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
    return None


def finished_metrics(run: Path) -> tuple[int, Metrics] | None:
    """Steps and last metrics of ``run`` if it has taken all its steps."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints or not (run / "model.json").exists():
        return None
    try:
        document = read_state(checkpoints[-1])
    except FormatError:
        return None  # loading falls back to the checkpoint before it
    if document["step"] < document["state"].get("record", {}).get("max_steps", math.inf):
        return None
    records = run / "metrics.jsonl"  # a run of no steps has none
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    metrics: Metrics = {}
    for line in map(json.loads, lines):
        if line.pop("step") == document["step"]:
            metrics |= line
    return document["step"], {**metrics, **document["state"]["cost"]}


def _commit() -> str | None:
    """The commit of the working tree the package runs from, if it is one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None  # no git here
    return answer.stdout.strip() or None
