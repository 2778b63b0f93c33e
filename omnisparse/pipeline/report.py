"""One page about runs, written once or again and again while they train."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from omnisparse.atomic import replaced_file
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.report_data import RunReport, read_run, read_transcripts
from omnisparse.pipeline.report_page import write_page
from omnisparse.runs.listing import TRAINING

MOST_RUNS = 12


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    transcripts: Sequence[Path] = (),
    refresh: int | None = None,
) -> list[RunReport]:
    """Write the page of some runs.

    Args:
        paths: Run directories; the order is that of the page.
        out: The file; it appears complete or not at all.
        transcripts: Files of ``evaluate --transcripts FILE.jsonl`` to show beside.
        refresh: Seconds after which a browser reads the file again; None for never.

    Returns:
        What was read.

    Raises:
        OmnisparseError: If there is no run, or too many, or one is none.
    """
    if not 1 <= len(paths) <= MOST_RUNS:
        raise OmnisparseError(f"{len(paths)} runs; a page shows 1 to {MOST_RUNS}")
    reports = [read_run(path) for path in paths]
    shown = [(path.name, read_transcripts(path)) for path in transcripts]
    page = write_page(reports, shown, refresh=refresh)
    with replaced_file(out) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    return reports


def keep_writing(
    paths: Sequence[Path],
    out: Path,
    *,
    every: int,
    transcripts: Sequence[Path] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> list[RunReport]:
    """Write the page every few seconds while a process trains one of the runs, and once more then.

    Args:
        paths: As of :func:`write_report`.
        out: As there.
        every: Seconds between two pages.
        transcripts: As there.
        tell: Called with a line at the beginning and at the end.

    Raises:
        OmnisparseError: As there.
    """
    reports = write_report(paths, out, transcripts=transcripts, refresh=every)
    if is_training(reports):
        tell(f"{out}: written every {every} s while the run trains; Ctrl-C ends that")
    while is_training(reports):
        time.sleep(every)
        reports = write_report(paths, out, transcripts=transcripts, refresh=every)
    tell("no process trains it any more")
    return write_report(paths, out, transcripts=transcripts)


def is_training(reports: Sequence[RunReport]) -> bool:
    """Whether a process trains one of them."""
    return any(report.state == TRAINING for report in reports)
