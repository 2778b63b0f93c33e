"""The verb ``demo``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, Report, reports


@click.command()
@click.option("--out", type=PATH, default=Path("demo"), show_default=True)
@click.option(
    "--with-baseline",
    is_flag=True,
    help="Also train a plain dense net for as long, and prune it to the same sizes.",
)
@click.option("--hours", type=float, help="Hours of speech to make; the demo's own by default.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@reports
def demo(
    report: Report, out: Path, with_baseline: bool, hours: float | None, overrides: tuple[str, ...]
) -> Mapping[str, Any]:
    """Make a corpus, train a small supernet, extract its sizes, compare them.

    Takes about five minutes on two cores with AVX512_BF16 and under ten on others (twice that with
    the baseline), and needs no data and no network. Finished parts in --out are kept. KEY=VALUE
    overrides the demo's config.
    """
    from omnisparse.pipeline.demo import run_demo

    return run_demo(
        out, with_baseline=with_baseline, hours=hours, overrides=overrides, console=report
    )
