"""The verb that measures runtimes: ``bench``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
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
@click.option(
    "--layers", is_flag=True,
    help="Also time every packing of every thinned matrix: was the one that is used the fastest?",
)  # fmt: skip
@click.option("--card", is_flag=True, help="Write the latency into the artifacts' model cards.")
@reports
def bench(
    report: Report, models: tuple[Path, ...], runtimes: str, audio: Path | None, rounds: int,
    out: Path | None, layers: bool, card: bool,
) -> Mapping[str, Any]:  # fmt: skip
    """Measure latency, real-time factor, memory, load time and bytes of MODELs.

    One thread, batch 1; each runtime in a process of its own. torch and onnxruntime compute with
    every weight, zeros too. Latency is the time for 40 ms of audio.
    """
    from omnisparse.pipeline import bench as pipeline

    chosen = pipeline.parse_runtimes(runtimes)
    if card:
        pipeline.require_artifacts(models)
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
    if card:
        for path in pipeline.write_cards(rows):
            report.note(f"written into {path}")
    if layers:
        result["layers"] = {str(model): _show_layers(report, model) for model in models}
    if out is not None:
        for path in pipeline.write_bench(rows, result, out):
            report.note(f"written {path}")
    return result


def _show_layers(report: Report, model: Path) -> list[dict[str, Any]]:
    """Measures and shows the packings of one model's matrices; them, ready for JSON."""
    from omnisparse.pipeline import bench as pipeline

    with report.progress("timing layers") as progress:
        rows = pipeline.bench_layers(model, progress=progress)
    kinds = [kind for kind in rows[0].microseconds]
    report.table(
        ["matrix", "shape", "kept", *(f"{kind} us" for kind in kinds), "used", "fastest"],
        [
            [
                row.name,
                f"{row.rows} x {row.columns}",
                f"{100 * row.density:.1f} %",
                *(
                    f"{row.microseconds[kind]:.1f}" if kind in row.microseconds else ""
                    for kind in kinds
                ),
                row.chosen,
                row.fastest,
            ]
            for row in rows
        ],
        title=str(model),
    )
    slowest = max(rows, key=lambda row: row.loss)
    used = sum(row.microseconds[row.chosen] for row in rows)
    best = sum(row.microseconds[row.fastest] for row in rows)
    report.note(
        f"the packings that are used take {used / best:.2f} times the fastest ones; "
        f"{slowest.name} loses most ({slowest.loss:.2f} times)"
    )
    return [{**asdict(row), "loss": row.loss} for row in rows]
