"""Metrics: always to ``metrics.jsonl`` in the run, and to W&B if the user has it."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omnisparse.durable import replacing
from omnisparse.errors import OmnisparseError
from omnisparse.training.wandb_file import read_history

Mode = Literal["online", "offline", "off"]
Metrics = dict[str, float]
_IDENTITY, _SENT = "wandb-id", "wandb-sent"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Experiment tracking beside the run's own ``metrics.jsonl``."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """``auto``: the mode of ``WANDB_MODE`` if set, else W&B if the user is logged in, else only
    the local file. If W&B cannot be reached with ``auto``, the training continues without it."""
    project: str = "omnisparse"
    """W&B project."""


class Tracker:
    """Append metrics to ``metrics.jsonl`` and, if configured or logged in, to W&B.

    W&B never takes a row back. So a row goes there only when the checkpoint behind it is written: a
    killed run does the steps since its checkpoint again, and each step still has one value. What
    W&B itself lost in the kill is given to it again; ``wandb-sent`` in the run says what went
    where.

    Args:
        run: The run directory.
        config: The tracking configuration.
        run_config: The whole resolved configuration, flattened with dots for W&B.
        resumed_step: Lines after this step are dropped: a resumed run repeats these steps.
        is_line_open: Whether the line of that step is still to be completed by an evaluation.

    Raises:
        OmnisparseError: If W&B was requested explicitly and cannot be started.
    """

    def __init__(
        self,
        run: Path,
        config: TrackingConfig,
        *,
        run_config: Mapping[str, Any],
        resumed_step: int = 0,
        is_line_open: bool = False,
    ) -> None:
        self.path = run / "metrics.jsonl"
        self._run = run
        self._sent = self._last_sent()
        self._drop_after(resumed_step)
        self._waiting: list[tuple[int, Metrics]] = []
        self._wandb = self._start_wandb(run, config, run_config)
        if self._wandb is None:
            return
        if getattr(self._wandb, "resumed", False):  # online: the server says what it has
            self._sent = int(self._wandb.starting_step) - 1
        self._before = self._sent
        self._note()
        self._waiting += [(line.pop("step"), line) for line in self._lines()]
        self.checkpointed(resumed_step - int(is_line_open))  # what a kill kept from going there

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record ``metrics`` of ``step`` (optimizer steps done)."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")
        if self._wandb is not None:
            self._waiting.append((step, dict(metrics)))

    def checkpointed(self, step: int) -> None:
        """Give W&B the rows up to ``step``, whose checkpoint is written now."""
        if self._wandb is None:
            return
        ready = [row for row in self._waiting if self._sent < row[0] <= step]
        self._waiting = [row for row in self._waiting if row[0] > step]
        if not ready:
            return
        self._sent = ready[-1][0]
        self._note()
        for row_step, metrics in ready:
            self._wandb.log(metrics, step=row_step)

    def go_back(self, step: int) -> None:
        """Forget the rows after ``step``, which the run takes again."""
        self._drop_after(step)
        self._waiting = [row for row in self._waiting if row[0] <= step]

    def preempted(self) -> None:
        """Tell W&B that the run will be continued: a sweep's agent takes it up again."""
        if self._wandb is not None:
            self._wandb.mark_preempting()

    def close(self, summary: Mapping[str, float] | None = None) -> None:
        """Finish.

        Args:
            summary: Becomes the W&B run's summary; None if the training failed.
        """
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary or {}))
            self._wandb.finish(exit_code=0 if summary is not None else 1)
            self._wandb = None

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = [line for line in self._lines() if line["step"] <= step]
        with replacing(self.path) as partial:
            partial.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")

    def _lines(self) -> list[dict[str, Any]]:
        """The complete lines of ``metrics.jsonl``, in order."""
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                found += [line] if isinstance(line["step"], int) else []
            except (ValueError, KeyError, TypeError):
                continue  # incomplete line of a killed process
        return found

    def _note(self) -> None:
        """Keep what went to W&B, and into which file."""
        note = {"sent": self._sent, "before": self._before, "file": self._wandb_file()}
        with replacing(self._run / _SENT) as partial:
            partial.write_text(json.dumps(note), encoding="utf-8")

    def _wandb_file(self) -> str | None:
        """The file that W&B writes now, relative to the run where it is in it."""
        folder = Path(str(getattr(self._wandb, "dir", ""))).parent
        file = next(folder.glob("*.wandb"), None)
        return None if file is None else os.path.relpath(file, self._run)

    def _last_sent(self) -> int:
        """The last step that W&B holds, -1 for none; of a run without a note, its last line."""
        try:
            note = json.loads((self._run / _SENT).read_text(encoding="utf-8"))
            sent, before, file = int(note["sent"]), int(note["before"]), note["file"]
        except (OSError, ValueError, KeyError, TypeError):
            lines = self._lines() if (self._run / _IDENTITY).exists() else []
            return max((line["step"] for line in lines), default=-1)
        if file is None or not (self._run / file).exists():
            return sent  # brought to the server, and deleted
        return max([before, *(step for step, _ in read_history(self._run / file))])

    @staticmethod
    def _start_wandb(run: Path, config: TrackingConfig, run_config: Mapping[str, Any]) -> Any:
        mode = _mode(config)
        if mode == "off":
            return None
        # A sweep's agent sets the id of its run itself. Any other run keeps its id, so that a
        # resumed training is one line in the chart and not two.
        identity = None if "WANDB_RUN_ID" in os.environ else _run_identity(run)
        return _init_wandb(
            config,
            name=run.name,
            id=identity,
            dir=str(run),
            mode=mode,
            config=flatten(run_config),
            resume="allow",
        )


def _init_wandb(tracking: TrackingConfig, **options: Any) -> Any:
    """Start a W&B run. If that fails in ``auto`` mode, tell the user and return None.

    Raises:
        OmnisparseError: If it fails and W&B was requested explicitly.
    """
    import wandb

    try:
        return wandb.init(project=tracking.project, **options)
    except (wandb.errors.Error, OSError) as error:
        reason = " ".join(str(error).split())
        if tracking.wandb != "auto":
            message = f"tracking.wandb={tracking.wandb}: W&B says {reason}"
            raise OmnisparseError(message) from None
        print(f"continuing without W&B, it cannot be started: {reason}", file=sys.stderr)
        return None


def log_comparison(
    config: TrackingConfig,
    *,
    name: str,
    folder: Path,
    table: Sequence[Mapping[str, Any]],
    images: Sequence[Path],
) -> None:
    """Log a comparison as a W&B run of its own, with a table and plots, where tracking is on.

    Args:
        config: The tracking configuration.
        name: Name of the W&B run.
        folder: Where W&B keeps its files.
        table: Rows with the same keys and plain values.
        images: Plots to show.

    Raises:
        OmnisparseError: If W&B was requested explicitly and cannot be started.
    """
    mode = _mode(config)
    if mode == "off" or not table:
        return
    run = _init_wandb(config, name=name, dir=str(folder), mode=mode, job_type="compare")
    if run is None:
        return
    import wandb

    columns = list(table[0])
    rows = [[row[column] for column in columns] for row in table]
    run.log(
        {
            "compare/table": wandb.Table(columns=columns, data=rows),
            **{f"compare/{image.stem}": wandb.Image(str(image)) for image in images},
        }
    )
    run.finish()


def _mode(config: TrackingConfig) -> Mode:
    """``online``, ``offline`` or ``off``, with ``auto`` resolved."""
    return _automatic_mode() if config.wandb == "auto" else config.wandb


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, the syntax of overrides and sweeps.

    An empty mapping stays as it is: it is a value too.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _run_identity(run: Path) -> str:
    """The W&B run id of a run directory, generated once and stored in its ``wandb-id``."""
    path = run / _IDENTITY
    if not path.exists():
        with replacing(path) as partial:
            partial.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _automatic_mode() -> Mode:
    """The meaning of ``auto`` here, found without importing wandb (which takes a second)."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "dryrun"):  # W&B's new and old name of this mode
        return "offline"
    if mode == "disabled":
        return "off"
    if mode == "online" or os.environ.get("WANDB_API_KEY"):
        return "online"
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "online" if "api.wandb.ai" in netrc.read_text(encoding="utf-8") else "off"
    except OSError:
        return "off"
