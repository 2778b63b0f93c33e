"""The verb ``report``: one page about runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, Report, reports


@click.command()
@click.argument("run", type=PATH, nargs=-1)
@click.option("--out", type=PATH, default=Path("report.html"), show_default=True)
@click.option(
    "--transcripts",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Show this file of `evaluate --transcripts FILE.jsonl`, too; may be given several times.",
)
@click.option("--live", is_flag=True, help="Write the page again while a run trains.")
@click.option(
    "--every",
    type=click.IntRange(1, 3600),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two pages of --live.",
)
@reports
def report(
    report: Report,
    run: tuple[Path, ...],
    out: Path,
    transcripts: tuple[Path, ...],
    live: bool,
    every: int,
) -> Mapping[str, Any]:
    """Write one page about RUNs (`runs/latest` if unset) that opens without a network.

    Losses, word errors by size, masks, gradients, throughput, density of every layer, transcripts
    with their errors marked, cost and configuration; several runs side by side. What `compare`,
    `search` and `extract` have left in a run is shown, too. With --live a browser that has the
    page open shows it as it grows.
    """
    from omnisparse.pipeline.report import keep_writing, write_report
    from omnisparse.runs.directory import latest_run

    runs = run or (latest_run(),)
    if live:
        found = keep_writing(runs, out, every=every, transcripts=transcripts, tell=report.note)
    else:
        found = write_report(runs, out, transcripts=transcripts)
    report.note(f"open it in a browser: {out}")
    return {"file": out, "runs": [one.name for one in found]}
