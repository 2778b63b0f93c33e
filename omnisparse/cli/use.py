"""The verbs that use a model: ``inspect`` counts its content, ``transcribe`` recognises with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.extract import show_bands, show_model
from omnisparse.cli.group import CUT_HELP, PATH, PLACE, FiniteRange, Report, describe, reports
from omnisparse.console import format_seconds, print_error
from omnisparse.errors import OmnisparseError, UsageError


@click.command()
@click.argument("model", type=PLACE)
@reports
def inspect(report: Report, model: Path | str) -> Mapping[str, Any]:
    """Count the content of MODEL (or of a nested file) from its bytes.

    If the files contain wrong statements, these are reported and the exit code is 1. For the
    address (http or https) of a nested file, only the header is read: its sizes, and how many bytes
    from its start each size needs.
    """
    from omnisparse.runs import directory as runs

    result = runs.inspect(model)
    report.note(f"{model}: {result['kind']}", style="bold")
    show_model(report, result)
    show_bands(report, result.get("bands", []))
    if result["kind"] == "nested":
        report.note("each row: a size, and its number of bytes from the start: `extract --prefix`")
    if not result.get("has_ranges", True):
        report.note("the server supports no byte ranges: for a prefix, the download is cut off")
    report.table(
        ["layer", "shape", "non-zero", "sparsity", "bytes"],
        [
            [
                layer["name"],
                " x ".join(map(str, layer["shape"])),
                f"{layer['nonzero']:,}",
                f"{layer['sparsity']:.4f}",
                f"{layer['bytes']:,}" if "bytes" in layer else "-",
            ]
            for layer in result["layers"]
        ],
    )
    if result.get("problems"):
        print_error(f"{model}: {'; '.join(result['problems'])}")
        report.has_failed = True
    return result


@click.command()
@click.argument("model", type=PLACE)
@click.argument("files", type=PATH, nargs=-1, required=True)
@click.option(
    "--size", help="If MODEL is a nested file: the size of the model; the largest if unset."
)
@click.option("--beam", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--streaming", is_flag=True, help="Recognise chunk by chunk (transducers).")
@click.option("--cut-above", type=FiniteRange(min=0), metavar="SECONDS", help=CUT_HELP)
@reports
def transcribe(
    report: Report,
    model: Path | str,
    files: tuple[Path, ...],
    size: str | None,
    beam: int,
    streaming: bool,
    cut_above: float | None,
) -> Mapping[str, Any]:
    """Recognise recordings: text on stdout, the real-time factor on stderr.

    MODEL may also be a nested file, or its address (http or https).

    With --streaming, a terminal shows the words while they are found. If a file cannot be read, it
    is named, the others are recognised, and the exit code is 1.
    """
    from omnisparse.deploy.recognizer import Recognizer
    from omnisparse.evaluation.notes import length_note

    if streaming and cut_above is not None:
        raise UsageError("cut-above goes without streaming: a stream is not cut")
    recognizer = Recognizer.from_path(model, size=size, cut_above=cut_above)
    results: list[dict[str, Any]] = []
    for file in files:
        try:
            with report.growing_text() as on_partial:
                transcript = recognizer.transcribe(
                    file, beam=beam, streaming=streaming, on_partial=on_partial
                )
        except (OmnisparseError, OSError) as error:
            print_error(describe(error))
            report.has_failed = True
            continue
        report.result(transcript.text if len(files) == 1 else f"{file}: {transcript.text}")
        in_pieces = f", {transcript.pieces} pieces" if transcript.pieces != 1 else ""
        report.note(
            f"{file}: {transcript.audio_seconds:.1f} s in {format_seconds(transcript.seconds)}, "
            f"real-time factor {transcript.rtf:.3f}{in_pieces}",
            style="dim",
        )
        long = length_note(
            [transcript.audio_seconds],
            recognizer.trained_seconds,
            cut_above=recognizer.cut_above,
            streams=recognizer.streams,
        )
        if long:
            report.warn(f"{file}: {long}")
        results.append(
            {
                "file": file,
                "text": transcript.text,
                "audio_seconds": transcript.audio_seconds,
                "seconds": transcript.seconds,
                "rtf": transcript.rtf,
                "words": None
                if transcript.words is None
                else [asdict(word) for word in transcript.words],
                "pieces": transcript.pieces,
                "warnings": [long] if long else [],
            }
        )
    return {"results": results}
