"""Finding or making a run directory, and locking it for one training at a time."""

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
from omnisparse.training.checkpoint import list_checkpoints, read_state, verify_checkpoint
from omnisparse.training.tracking import Metrics, flatten

try:
    import fcntl
except ImportError:  # Windows: the user must avoid two trainings in one run directory
    fcntl = None  # type: ignore[assignment]

_EARLY_FILES = (
    "tokenizer.model", "tokens.txt", "model.json", "metrics.jsonl", "wandb-id", "wandb-sent",
    "left_out.jsonl", CORPUS_FILE,
)  # fmt: skip
"""Files that a training writes before its first checkpoint."""


_CHANGE_NOTHING = ("training.threads", "training.timeout", "data.workers")
"""Keys of cores, readers and patience, which do not change a run; nor does its tracking."""


class RunDirectoryError(OmnisparseError):
    """A run directory that cannot be used; the main process detects it for all processes."""

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
    search_evaluations: int = 0,
    needed: Sequence[Path] = (),
    accept_changes: bool = False,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Find or make the run directory and lock it; the main process decides for all processes.

    Args:
        config: The run configuration.
        out: The requested directory; None for ``runs/<name>``.
        accelerator: The processes.
        stage: Called with messages about waiting for another training and about used directories.
        row: As of :func:`omnisparse.runs.record.make_record`.
        size: As there.
        search_evaluations: As there.
        needed: As there.
        accept_changes: Continue even if a net that the configuration names (``init``, a teacher) or
            a tokenizer differs from the one with which the run began.

    Yields:
        The directory, and the record for its checkpoints.

    Raises:
        RunDirectoryError: If the directory or a run that the configuration names cannot be used.
    """
    chosen: list[Any] = [None, {}, None]
    lock: IO[str] | None = None
    if accelerator.is_main_process:
        try:
            record = make_record(
                config,
                row=row,
                size=size,
                commit=_commit(),
                search_evaluations=search_evaluations,
                needed=needed,
            )
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
        if lock is not None:  # the other training may have made a different run
            lock.close()


def _lock(run: Path, stage: Callable[[str], None], *, may_wait: bool) -> IO[str] | None:
    """Lock ``run`` for this process; the system releases the lock even if the process is killed.

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
        out = out.resolve()  # `runs/latest` stands for the run, not the link
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
        OmnisparseError: If one differs now and ``accept_changes`` is false; names it.
    """
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        return
    try:
        before = read_state(checkpoints[-1])["state"].get("record", {}).get("starts", {})
    except FormatError:
        return  # loading falls back to an earlier checkpoint, or reports the problem
    changed = [
        f"{key} was {before[key]} and is {now}"
        for key, now in record["starts"].items()
        if before.get(key, now) != now
    ]
    refuse_changes(run, changed, stage, accept_changes=accept_changes)


def refuse_changes(
    run: Path, changed: Sequence[str], stage: Callable[[str], None], *, accept_changes: bool
) -> None:
    """Refuse to continue a run whose data or nets have changed; only tell if that is accepted.

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
    for partial in run.glob(".*.part*"):  # of a kill; the run is locked
        partial.unlink(missing_ok=True)
    with replacing(run / "config.yaml") as partial:
        partial.write_text(config_to_yaml(config), encoding="utf-8")
    return run


def _is_of_a_start(name: str) -> bool:
    """Whether a file is what a training has written that was killed before its ``config.yaml``."""
    return name == LOCK or (name.startswith(".config.") and ".part" in name)


def _differing_key(run: Path, document: dict[str, Any]) -> str | None:
    """The reason why ``run`` cannot be used for ``document``; None if there is none."""
    if not run.exists() or (run.is_dir() and all(_is_of_a_start(p.name) for p in run.iterdir())):
        return None
    if (run / "config.yaml").is_file() and not list_checkpoints(run / "checkpoints"):
        if fcntl is None or (run / LOCK).exists():
            return None  # it failed before its first checkpoint: nothing needs to be kept
        return "files that are not from a training"
    try:
        existing = read_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return "it has no readable config.yaml"
    if not isinstance(existing, dict):
        return "it has no readable config.yaml"
    with suppress(ConfigError):  # otherwise its text is compared
        existing = config_to_dict(config_from_dict(existing))  # newer keys have their defaults
    old, new = flatten(existing), flatten(document)
    for key in [*new, *old]:
        if key.startswith("tracking.") or key in _CHANGE_NOTHING:
            continue
        if old.get(key) != new.get(key):
            return f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
    return None


def finished_metrics(run: Path) -> tuple[int, Metrics] | None:
    """Steps and last metrics of ``run`` if it has taken all its steps."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints or not (run / "model.json").exists():
        return None
    try:
        document = verify_checkpoint(checkpoints[-1])
    except FormatError:
        return None  # loading falls back to an earlier checkpoint
    if document["step"] < document["state"].get("record", {}).get("max_steps", math.inf):
        return None
    if document["state"].get("owes_evaluation"):
        return None  # a signal cut it short
    records = run / "metrics.jsonl"  # a run without steps has none
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    metrics: Metrics = {}
    for line in map(json.loads, lines):
        if line.pop("step") == document["step"]:
            metrics |= line
    return document["step"], {**metrics, **document["state"]["cost"]}


def _commit() -> str | None:
    """The commit of the working tree from which the package runs, if there is one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None  # no git here
    return answer.stdout.strip() or None
