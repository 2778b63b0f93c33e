"""The verb ``sweep``: a W&B sweep file on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, Report, reports


@click.command()
@click.argument("file", type=PATH)
@click.option("--local", is_flag=True, help="Run it here, without a server.")
@click.option("--slurm", is_flag=True, help="Write a SLURM array script, and run nothing.")
@click.option(
    "--out", type=PATH, help="Folder of its state and logs; sweeps/<name of FILE> if unset."
)
@click.option("--count", type=click.IntRange(min=1), help="Most runs; how many, if not a grid.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of a random or bayes sweep.")
@click.option(
    "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at once."
)
@reports
def sweep(
    report: Report,
    file: Path,
    local: bool,
    slurm: bool,
    out: Path | None,
    count: int | None,
    seed: int,
    jobs: int,
) -> Mapping[str, Any]:
    """Run a W&B sweep FILE: grid, random, or bayes (by optuna's TPE).

    When started again, it skips finished runs and continues interrupted ones. A failed run is
    started once more, then reported; the others continue, and the exit code is 1. With --slurm, an
    array script is written in place of running it. With W&B's server use `wandb sweep FILE` and
    `wandb agent`.
    """
    from omnisparse.sweeps.file import load_sweep
    from omnisparse.sweeps.local import FINISHED, run_sweep

    if local == slurm:
        raise click.UsageError(
            "give --local or --slurm; on several machines use `wandb sweep FILE` and "
            "`wandb agent ID`"
        )
    folder = out or Path("sweeps") / file.stem
    loaded = load_sweep(file)
    if slurm:
        from omnisparse.sweeps.slurm import write_array

        script = write_array(loaded, folder, jobs=jobs, count=count, seed=seed)
        report.note(f"submit it: sbatch {script}")
        return {"script": script, "runs": [], "failed": 0}
    runs = run_sweep(loaded, folder, count=count, seed=seed, jobs=jobs, tell=report.note)
    failed = [run for run in runs if run["status"] != FINISHED]
    report.note(f"{len(runs) - len(failed)} of {len(runs)} runs finished: {folder / 'runs.json'}")
    for run in failed:
        words = " ".join(f"{name}={value}" for name, value in run["parameters"].items())
        report.warn(f"failed: {words}: {run['error']} ({run['log']})")
    report.has_failed = bool(failed)
    measured = [run for run in runs if run.get("metric") is not None]
    if loaded.metric is not None and measured:
        pick = min if loaded.minimise else max
        best = pick(measured, key=lambda run: run["metric"])
        words = " ".join(f"{name}={value}" for name, value in best["parameters"].items())
        report.note(f"best: {words}: {loaded.metric} {best['metric']:.4g}")
    found = list(
        dict.fromkeys(path for run in runs for path in [*run["needed"], run["run"]] if path)
    )
    if found:
        report.note(f"compare them: omnisparse compare {' '.join(found)}")
    return {"runs": runs, "failed": len(failed)}
