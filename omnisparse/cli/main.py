"""The command line: each verb parses its options and calls one function.

Everything heavy is imported inside the verb that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.evaluate import compare, evaluate
from omnisparse.cli.extract import extract, grow
from omnisparse.cli.group import PATH, Report, Verbs, reports
from omnisparse.cli.recipe import (
    CONTEXT_SETTINGS,
    LIMIT_HELP,
    OUT_HELP,
    limit_override,
    run_recipe,
    train_and_report,
)
from omnisparse.cli.search import search
from omnisparse.cli.sweep import sweep
from omnisparse.cli.use import inspect, transcribe
from omnisparse.errors import UsageError
from omnisparse.version import __version__

__all__ = ["main", "run_recipe", "verbs"]

SECTIONS = {
    "Start here": ("demo",),
    "Data": ("prepare",),
    "Train once, extract every size": ("train", "search", "extract", "grow"),
    "Measure and use": ("evaluate", "inspect", "transcribe"),
    "Compare methods": ("sweep", "compare"),
}


@click.group(
    cls=Verbs,
    sections=SECTIONS,
    context_settings=CONTEXT_SETTINGS,
)
@click.version_option(__version__, "-V", "--version", prog_name="omnisparse")
@click.option(
    "--debug",
    is_flag=True,
    default=lambda: bool(os.environ.get("OMNISPARSE_DEBUG")),
    help="Show tracebacks (also: OMNISPARSE_DEBUG=1).",
)
def verbs(debug: bool) -> None:
    """Train one speech recogniser, extract a deployable model of any size in seconds.

    MODEL is a directory that `extract` wrote, or a run directory (its dense net). Results go to
    stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 bad usage.
    """


@verbs.command()
@click.option("--out", type=PATH, default=Path("demo"), show_default=True)
@click.option(
    "--with-baseline",
    is_flag=True,
    help="Also train a plain dense net for as long and cut it to the same sizes.",
)
@click.option("--hours", type=float, help="Hours of speech to make; the demo's own by default.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@reports
def demo(
    report: Report, out: Path, with_baseline: bool, hours: float | None, overrides: tuple[str, ...]
) -> Mapping[str, Any]:
    """Speak a corpus, train a small supernet, extract its sizes, compare them.

    Takes under ten minutes on two cores (under twenty with the baseline), and needs no data and no
    network. What is already finished in --out is kept. KEY=VALUE overrides the demo's config.
    """
    from omnisparse.pipeline.demo import run_demo

    return run_demo(
        out, with_baseline=with_baseline, hours=hours, overrides=overrides, console=report
    )


@verbs.group()
def prepare() -> None:
    """Make or import a corpus."""


@prepare.command("synthetic")
@click.option("--out", type=PATH, required=True, help="Folder to write.")
@click.option("--hours", type=float, default=2.0, show_default=True, help="Hours of speech.")
@click.option(
    "--text",
    type=PATH,
    help="Sentences to speak, one a line; a closed assistant domain by default.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--preset",
    type=click.Choice(["assistant", "assistant-easy"]),
    default="assistant",
    show_default=True,
    help="How many voices and how much noise.",
)
@reports
def prepare_synthetic(
    report: Report, out: Path, hours: float, text: Path | None, seed: int, preset: Any
) -> Mapping[str, Any]:
    """Speak a corpus with espeak-ng; the voices of the splits are disjoint."""
    from omnisparse.synthetic import corpus as synthetic

    try:
        config = synthetic.SyntheticConfig(
            preset=preset, hours=hours, text=None if text is None else str(text), seed=seed
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    with report.progress("speaking") as progress:
        statistics = synthetic.prepare_synthetic(config, out, progress=progress)
    _show_splits(report, statistics, out)
    return statistics


@prepare.command("import")
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["auto", "nemo", "lhotse", "kaldi", "librispeech"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--split",
    metavar="90/5/5",
    help="Divide a corpus without splits into train, dev and test; each speaker is in one only.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides which speakers go where."
)
@reports
def prepare_import(
    report: Report, source: Path, out: Path, format_: Any, split: str | None, seed: int
) -> Mapping[str, Any]:
    """Check the audio of a corpus and write it as lhotse cuts.

    Bad items are listed in OUT/skipped.jsonl, skipped and counted; more than 5 % is an error.
    """
    from omnisparse.data.corpora import import_corpus

    with report.progress("checking audio") as progress:
        statistics = import_corpus(
            source, out, corpus_format=format_, progress=progress, split=split, seed=seed
        )
    _show_splits(report, statistics, out)
    for note in statistics.get("notes", []):
        report.warn(note)
    if statistics["skipped"]:
        report.warn(f"{statistics['skipped']} bad items skipped: see {out / 'skipped.jsonl'}")
    return statistics


def _show_splits(report: Report, statistics: Mapping[str, Any], out: Path) -> None:
    """Shows the sizes of the splits that were written."""
    rows = [
        [name, f"{split['utterances']:,}", f"{split['hours']:.2f}", f"{split['speakers']:,}"]
        for name, split in statistics["splits"].items()
    ]
    report.table(["split", "utterances", "hours", "speakers"], rows)
    report.note(f"written to {out}")


@verbs.command()
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=PATH, help=OUT_HELP)
@click.option("--max-layer-parameters", metavar="SIZE", help=LIMIT_HELP)
@reports
def train(
    report: Report,
    config: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    max_layer_parameters: str | None,
) -> Mapping[str, Any]:
    """Train what CONFIG (YAML) describes; KEY=VALUE overrides it.

    `training.max_steps=0` writes the untrained net as a run.
    """
    from omnisparse.config import load_config

    settings = [*overrides, *limit_override(max_layer_parameters)]
    return train_and_report(report, load_config(config, settings), out=out)


verbs.add_command(extract)
verbs.add_command(grow)
verbs.add_command(search)
verbs.add_command(evaluate)
verbs.add_command(inspect)
verbs.add_command(transcribe)
verbs.add_command(compare)
verbs.add_command(sweep)


def main() -> None:
    """Entry point of the ``omnisparse`` command."""
    verbs(prog_name="omnisparse")


if __name__ == "__main__":
    main()
