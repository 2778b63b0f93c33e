"""The verbs of ``prepare``: make a synthetic corpus, or import a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnisparse.cli.group import PATH, Report, reports
from omnisparse.errors import UsageError


@click.group()
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
    type=click.Choice(["assistant", "assistant-easy", "assistant-voices", "assistant-strangers"]),
    default="assistant",
    show_default=True,
    help="How many voices and how much noise.",
)
@reports
def prepare_synthetic(
    report: Report, out: Path, hours: float, text: Path | None, seed: int, preset: Any
) -> Mapping[str, Any]:
    """Make a corpus with espeak-ng; no voice is in two splits."""
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


FORMAT = click.option(
    "--format",
    "format_",
    type=click.Choice(["auto", "nemo", "lhotse", "kaldi", "librispeech", "shar"]),
    default="auto",
    show_default=True,
)


@prepare.command("import")
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write.")
@FORMAT
@click.option(
    "--split",
    metavar="90/5/5",
    help="Divide a corpus without splits into train, dev and test; each speaker is in one only.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides which speakers go where."
)
@click.option(
    "--normalize",
    default="",
    metavar="RULES",
    help="Change the transcripts: of nfc, nfkc, lower, upper, punctuation, joined by commas. "
    "Nothing is changed by default.",
)
@reports
def prepare_import(
    report: Report,
    source: Path,
    out: Path,
    format_: Any,
    split: str | None,
    seed: int,
    normalize: str,
) -> Mapping[str, Any]:
    """Check the audio of a corpus and write it as lhotse cuts.

    Bad items are listed in OUT/skipped.jsonl, skipped and counted; more than 5 % of a split is an
    error. OUT/import.json says where the corpus comes from and how its transcripts were changed.
    """
    from omnisparse.data.corpora import import_corpus
    from omnisparse.data.normalization import parse_rules

    try:
        rules = parse_rules(normalize)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with report.progress("checking audio") as progress:
        statistics = import_corpus(
            source,
            out,
            corpus_format=format_,
            progress=progress,
            tell=report.warn,
            rules=rules,
            split=split,
            seed=seed,
        )
    _show_splits(report, statistics, out)
    for note in statistics.get("notes", []):
        report.warn(note)
    if statistics["skipped"]:
        report.warn(f"{statistics['skipped']} bad items skipped: see {out / 'skipped.jsonl'}")
    return statistics


@prepare.command("shard")
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write.")
@click.option(
    "--codec",
    type=click.Choice(["flac", "wav", "opus", "mp3"]),
    default="flac",
    show_default=True,
    help="How audio is kept; flac and wav lose nothing of 16 or 24 bits.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Most utterances of a shard.",
)
@click.option(
    "--sampling-rate",
    type=click.IntRange(min=8000, max=384_000),
    metavar="HZ",
    help="Resample to this rate; by default every file keeps its own.",
)
@click.option(
    "--features",
    "num_bins",
    type=click.IntRange(min=4, max=1024),
    metavar="BINS",
    help="Also write log-mel frames of so many bins, for other tools.",
)
@FORMAT
@click.option(
    "--normalize",
    default="",
    metavar="RULES",
    help="Change the transcripts, as in `prepare import`.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Threads that read and encode audio.",
)
@reports
def prepare_shard(
    report: Report,
    source: Path,
    out: Path,
    codec: Any,
    shard_size: int,
    sampling_rate: int | None,
    num_bins: int | None,
    format_: Any,
    normalize: str,
    jobs: int,
) -> Mapping[str, Any]:
    """Write a corpus as shards (lhotse Shar), for large corpora.

    Every split is a folder OUT/SPLIT, which training and evaluation read as a manifest, and which
    lhotse reads too. Bad items are listed in OUT/skipped.jsonl.
    """
    from omnisparse.data.normalization import parse_rules
    from omnisparse.data.sharding import shard_corpus

    try:
        rules = parse_rules(normalize)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with report.progress("writing shards") as progress:
        statistics = shard_corpus(
            source,
            out,
            codec=codec,
            shard_size=shard_size,
            sampling_rate=sampling_rate,
            num_bins=num_bins,
            corpus_format=format_,
            rules=rules,
            num_jobs=jobs,
            progress=progress,
            tell=report.warn,
        )
    rows = [
        [
            name,
            f"{part['shards']:,}",
            f"{part['utterances']:,}",
            f"{part['hours']:.2f}",
            f"{part['bytes'] / 1e6:,.1f} MB",
        ]
        for name, part in statistics["splits"].items()
    ]
    report.table(["split", "shards", "utterances", "hours", "size"], rows)
    report.note(f"written to {out}")
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
