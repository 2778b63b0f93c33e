"""The verb that measures runtimes: ``bench``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, Report, reports
from omnisparse.console import format_bytes


@click.command()
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--runtimes", default="sparse", show_default=True,
    help="Of sparse, torch, onnxruntime, onnxruntime-int8, onnxruntime-packed, with commas; "
    "or all.",
)  # fmt: skip
@click.option("--audio", type=PATH, help="Recording to recognise; ten seconds of tones if unset.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--out", type=PATH, help="Folder for bench.json and bench.png.")
@reports
def bench(
    report: Report, models: tuple[Path, ...], runtimes: str, audio: Path | None, rounds: int,
    out: Path | None,
) -> Mapping[str, Any]:  # fmt: skip
    """Measure latency, real-time factor, memory, load time and bytes of MODELs.

    One thread, batch 1; each runtime in a process of its own. torch and onnxruntime compute with
    every weight, zeros too. Latency is the time for 40 ms of audio.
    """
    from omnisparse.pipeline import bench as pipeline

    chosen = pipeline.parse_runtimes(runtimes)
    with tempfile.TemporaryDirectory() as folder:
        place = audio or pipeline.write_tones(Path(folder) / "tones.wav")
        with report.progress("measuring") as progress:
            rows = pipeline.bench(models, chosen, audio=place, rounds=rounds, progress=progress)
    report.table(
        ["model", "runtime", "non-zero", "file", "load", "memory", "ms per 40 ms", "RTF"],
        [
            [
                row.model,
                row.runtime,
                f"{row.nonzero:,}",
                format_bytes(row.file_bytes),
                f"{row.load_seconds:.2f} s",
                format_bytes(row.peak_bytes),
                f"{row.latency_ms:.2f}",
                f"{row.rtf:.4f}",
            ]
            for row in rows
        ],
    )
    result = pipeline.as_result(rows, audio)
    if out is not None:
        for path in pipeline.write_bench(rows, result, out):
            report.note(f"written {path}")
    return result
