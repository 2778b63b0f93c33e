"""The verb ``runs``: a list of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, Report, reports


@click.command()
@click.argument("folder", type=PATH, default=Path("runs"))
@reports
def runs(report: Report, folder: Path) -> Mapping[str, Any]:
    """List the runs of FOLDER (`runs` if unset), the newest first.

    Each with its method, steps, state (finished, training, stopped, no checkpoint, damaged), the
    last word error rate on its dev split, the size of its net and the date. `*` marks the run that
    `runs/latest` links to.
    """
    from omnisparse.runs.listing import list_runs

    found = list_runs(folder)
    if not found:
        report.note(f"no runs in {folder}: `omnisparse train` makes one")
    else:
        report.table(
            ["run", "method", "steps", "state", "dev WER %", "size", "date"],
            [
                [
                    f"{run.name}{' *' if run.latest else ''}",
                    run.method or "",
                    f"{run.steps:,}/{run.max_steps:,}" if run.max_steps else f"{run.steps:,}",
                    run.state,
                    "" if run.dev_wer is None else f"{run.dev_wer:.2f}",
                    run.size or ("" if run.parameters is None else f"{run.parameters:,}"),
                    (run.date or "")[:16],
                ]
                for run in found
            ],
        )
        if any(run.latest for run in found):
            report.note(
                "* is the run of commands without --run or MODEL (runs/latest)", style="dim"
            )
        if all(run.dev_wer is None for run in found):
            report.note(
                "no dev WER: training.evaluate_every=N measures it every N steps", style="dim"
            )
    return {"runs": [run.to_dict() for run in found]}
