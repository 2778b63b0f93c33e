"""The verb that writes files for other runtimes: ``export``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, Report, reports
from omnisparse.console import format_bytes


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--format", "format_", type=click.Choice(["onnx", "onnx-sparse", "sherpa"]), required=True,
    help="onnx: for onnxruntime; onnx-sparse: the same with ONNX's sparse tensors; sherpa: for "
    "sherpa-onnx.",
)  # fmt: skip
@click.option("--out", type=PATH, help="Folder to write; beside MODEL if unset.")
@click.option(
    "--packed", is_flag=True, help="Only weights that are not zero, and where: smallest files."
)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]),
    help="How the weights are stored; fp16 with --packed, else fp32.",
)  # fmt: skip
@click.option(
    "--chunk", type=int, metavar="MS",
    help="Audio that sherpa-onnx hands over at once (LSTM encoders); 320 if unset.",
)  # fmt: skip
@reports
def export(
    report: Report, model: Path, format_: str, out: Path | None, packed: bool,
    precision: Any, chunk: int | None,
) -> Mapping[str, Any]:  # fmt: skip
    """Write MODEL as files that other runtimes load, compared with PyTorch first.

    The files are small on the disk; a runtime makes dense weights of them while it loads.
    """
    if packed and format_ == "onnx-sparse":
        raise click.UsageError("--packed and --format onnx-sparse are two ways to store zeros")
    if chunk is not None and format_ != "sherpa":
        raise click.UsageError("--chunk goes with --format sherpa")
    import omnisparse
    from omnisparse.deploy.onnx_export import Source, export_onnx
    from omnisparse.models.factored import multiplied_out

    loaded = omnisparse.load_model(model)
    # ONNX files keep the factors of a factored net; sherpa's have a fixed layout.
    net = multiplied_out(loaded.model) if format_ == "sherpa" else loaded.model
    source = Source(
        model=net, tokenizer=loaded.tokenizer, extractor=loaded.extractor,
        name=model.resolve().name,
    )  # fmt: skip
    if format_ == "sherpa":
        from omnisparse.deploy.sherpa import export_sherpa

        exported = export_sherpa(
            source, layout="packed" if packed else "dense", precision=precision, chunk_ms=chunk,
            warn=report.warn,
        )  # fmt: skip
    else:
        layout: Any = "sparse" if format_ == "onnx-sparse" else "packed" if packed else "dense"
        exported = export_onnx(source, layout=layout, precision=precision)
    words = [format_, *(["packed"] if packed else []), *([precision] if precision else [])]
    words += [] if chunk is None else [f"{chunk}ms"]
    result = exported.write(out or model.resolve().with_name(f"{source.name}-{'-'.join(words)}"))
    report.table(["file", "bytes"], [[f["path"].name, f"{f['bytes']:,}"] for f in result["files"]])
    report.note(
        f"written to {result['path']}, {format_bytes(result['bytes'])}; differs from PyTorch by at "
        f"most {result['max_abs_difference']:.1g}"
    )
    return result
