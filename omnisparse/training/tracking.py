"""Where metrics go: always ``metrics.jsonl`` in the run; W&B as well when the user has it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Experiment tracking beside the run's own ``metrics.jsonl``."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """``auto``: W&B if the user is logged in, else only the local file."""
    project: str = "omnisparse"
    """W&B project."""


class Tracker:
    """Append metrics to ``metrics.jsonl`` and, when asked or logged in, to W&B.

    Args:
        run: The run directory.
        config: The tracking configuration.
        run_config: The whole resolved configuration, flattened with dots for W&B.
        resumed_step: Lines after this step are dropped: they belong to steps that a resumed run
            does again.
    """

    def __init__(
        self,
        run: Path,
        config: TrackingConfig,
        *,
        run_config: Mapping[str, Any],
        resumed_step: int = 0,
    ) -> None:
        self.path = run / "metrics.jsonl"
        self._drop_after(resumed_step)
        self._wandb = self._start_wandb(run, config, run_config)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record ``metrics`` of ``step`` (optimizer steps done)."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def close(self, summary: Mapping[str, float]) -> None:
        """Finish; ``summary`` becomes the W&B run's summary."""
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary))
            self._wandb.finish()

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the half line of a killed process
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    @staticmethod
    def _start_wandb(run: Path, config: TrackingConfig, run_config: Mapping[str, Any]) -> Any:
        mode = _mode(config)
        if mode == "off":
            return None
        import wandb

        return wandb.init(
            project=config.project,
            name=run.name,
            dir=str(run),
            mode=mode,
            config=flatten(run_config),
            resume="allow",
        )


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
        table: Rows of the same keys, their values plain.
        images: Plots to show.
    """
    mode = _mode(config)
    if mode == "off" or not table:
        return
    import wandb

    columns = list(table[0])
    run = wandb.init(
        project=config.project, name=name, dir=str(folder), mode=mode, job_type="compare"
    )
    rows = [[row[column] for column in columns] for row in table]
    run.log(
        {
            "compare/table": wandb.Table(columns=columns, data=rows),
            **{f"compare/{image.stem}": wandb.Image(str(image)) for image in images},
        }
    )
    run.finish()


def _mode(config: TrackingConfig) -> Literal["online", "offline", "off"]:
    """What ``auto`` means on this machine."""
    if config.wandb == "auto":
        return "online" if _wandb_logged_in() else "off"
    return config.wandb


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, the syntax of overrides and sweeps."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _wandb_logged_in() -> bool:
    """True if a W&B key or mode is set; found out without importing wandb (a second)."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in {"online", "offline"}:
        return os.environ.get("WANDB_MODE") != "disabled"
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "api.wandb.ai" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False
