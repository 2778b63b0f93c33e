"""The verb ``sweep``: a W&B sweep file on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, Report, reports


@click.command()
@click.argument("file", type=PATH)
@click.option("--local", is_flag=True, help="Run it here, without a server (the only way so far).")
@click.option(
    "--out", type=PATH, help="Folder of its state and logs; sweeps/<name of FILE> if unset."
)
@click.option("--count", type=click.IntRange(min=1), help="Most runs; how many, of a random sweep.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of a random sweep.")
@reports
def sweep(
    report: Report, file: Path, local: bool, out: Path | None, count: int | None, seed: int
) -> Mapping[str, Any]:
    """Run a W&B sweep FILE (grid or random), one run after the other.

    When started again, it skips finished runs and continues an interrupted run. A failed run is
    reported, the others continue, and the exit code is 1. For several machines use
    `wandb sweep FILE` and `wandb agent`.
    """
    from omnisparse.sweeps.file import load_sweep
    from omnisparse.sweeps.local import FINISHED, run_sweep

    if not local:
        raise click.UsageError(
            "give --local; on several machines use `wandb sweep FILE` and `wandb agent ID`"
        )
    folder = out or Path("sweeps") / file.stem
    runs = run_sweep(load_sweep(file), folder, count=count, seed=seed, tell=report.note)
    failed = [run for run in runs if run["status"] != FINISHED]
    report.note(f"{len(runs) - len(failed)} of {len(runs)} runs finished: {folder / 'runs.json'}")
    for run in failed:
        words = " ".join(f"{name}={value}" for name, value in run["parameters"].items())
        report.warn(f"failed: {words}: {run['error']} ({run['log']})")
    report.has_failed = bool(failed)
    found = list(
        dict.fromkeys(path for run in runs for path in [*run["needed"], run["run"]] if path)
    )
    if found:
        report.note(f"compare them: omnisparse compare {' '.join(found)}")
    return {"runs": runs, "failed": len(failed)}
