"""The verb that opens a local page: ``serve``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, FiniteRange, Report, reports
from omnisparse.console import format_bytes


@click.command()
@click.argument("models", type=PATH, nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free."
)
@click.option(
    "--max-megabytes", type=FiniteRange(min=0, min_open=True), default=20.0, show_default=True,
    help="Largest upload.",
)  # fmt: skip
@click.option(
    "--max-seconds", type=FiniteRange(min=0, min_open=True), default=120.0, show_default=True,
    help="Longest recording.",
)  # fmt: skip
@reports
def serve(
    report: Report, models: tuple[Path, ...], host: str, port: int, max_megabytes: float,
    max_seconds: float,
) -> Mapping[str, Any]:  # fmt: skip
    """Open a local page: speak, and MODELs of several sizes recognise you side by side.

    The page works offline and sends nothing anywhere. Stop it with Ctrl-C.
    """
    from omnisparse.deploy.recognizer import Recognizer
    from omnisparse.deploy.serve import Limits, PageServer
    from omnisparse.deploy.serve_session import ServedModel
    from omnisparse.runs import directory as runs

    served = []
    for model in models:
        counts = runs.inspect(model)
        recognizer = Recognizer.from_path(model)
        served.append(
            ServedModel(
                name=model.resolve().name, recognizer=recognizer, bytes=counts["bytes"],
                nonzero=counts["nonzero"], parameters=counts["parameters"],
                streams=recognizer.streams,
            )
        )  # fmt: skip
    limits = Limits(max_bytes=round(1e6 * max_megabytes), max_seconds=max_seconds)
    with PageServer(served, host=host, port=port, limits=limits, log=report.note) as server:
        for item in server.models:
            report.note(f"{item.name}: {format_bytes(item.bytes)}, {item.nonzero:,} non-zero")
        if not server.is_local:
            report.warn(f"{host} is no loopback address: whoever reaches it may use this page")
        report.note(f"the page is at {server.url} (Ctrl-C ends it)", style="bold")
        server.serve_forever()
    return {"url": server.url}
