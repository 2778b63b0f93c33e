"""The whole workflow in one command: make a corpus, train once, extract every size, compare.

Run by ``omnisparse demo`` and ``make demo``. It needs no data, no network and no GPU.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.config import ConfigError, CorpusConfig, RunConfig, load_config
from omnisparse.console import Console, format_bytes, format_interval, format_seconds
from omnisparse.data.corpora import load_manifest
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.durable import replacing
from omnisparse.errors import UsageError
from omnisparse.evaluation.heard import Heard
from omnisparse.evaluation.pareto import ResultRow, format_count, plot_pareto, write_csv
from omnisparse.evaluation.result import EvaluationResult
from omnisparse.methods import DenseConfig, SandwichConfig
from omnisparse.pipeline import train as pipeline
from omnisparse.pipeline.evaluate import recognise, recognizer_of
from omnisparse.pipeline.extract import extract
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_record
from omnisparse.sparsity.sizes import parse_size
from omnisparse.synthetic.corpus import SyntheticConfig, prepare_synthetic

if TYPE_CHECKING:
    from lhotse import CutSet

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
SIZES = ("100%", "50%", "25%", "12%")
"""Sizes to extract, beside the smallest size of the supernet's training."""

SUPERNET = "supernet"
BASELINE = "baseline"
LEGEND = {
    SUPERNET: "supernet: one training, every size",
    BASELINE: "plain dense net, cut by magnitude",
}


def run_demo(
    out: Path,
    *,
    with_baseline: bool = False,
    hours: float | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs the demo into ``out``; parts that an earlier call finished are kept.

    Args:
        out: Folder to fill: ``corpus``, ``supernet``, ``models``, ``report.json``, ``pareto.csv``
            and ``pareto.png``.
        with_baseline: Also train a plain dense net with as many utterance passes as the supernet,
            and prune it to the same sizes by magnitude.
        hours: Hours of speech to train on; None for the demo's default.
        overrides: ``key=value`` changes to the demo's config.
        console: Console for messages; None for no messages.

    Returns:
        The content of ``report.json``; ``seconds`` of a row is the time of its extraction.

    Raises:
        OmnisparseError: If a step fails.
        ConfigError: If an override is not legal, or sets another corpus or method.
        UsageError: If ``hours`` is not legal.
    """
    start = time.perf_counter()
    console = console if console is not None else Console(quiet=True)
    out = out.absolute()
    corpus = out / "corpus"
    config, synthetic = _configure(corpus, hours, overrides)
    console.heading(f"1  Corpus: {synthetic.hours:g} h of synthetic speech in {corpus}")
    with console.progress("speaking (s of audio)") as progress:
        statistics = prepare_synthetic(synthetic, corpus, progress=progress)
    _tell_splits(console, statistics)

    console.heading("2  Training: one supernet, every size inside it")
    trained = {SUPERNET: _train(config, out / SUPERNET, console)}
    if with_baseline:
        plain = _baseline_config(config, trained[SUPERNET], statistics)
        console.heading("   Baseline: a plain dense net, trained with as many utterance passes")
        trained[BASELINE] = _train(plain, out / BASELINE, console, is_helper=True)

    console.heading("3  Extraction: no retraining, and the word error rate of each size")
    test = load_manifest(corpus / "test.jsonl")
    rows = []
    sizes, heard = _sizes(config), Heard()
    for curve, training in trained.items():
        rows += _measure_sizes(curve, training["run"], sizes, out / "models", test, heard, console)
    example = _transcribe_one(rows, out / "models", test)
    report = {
        "rows": [row.to_dict() for row in rows],
        "corpus": statistics,
        "training": {
            curve: {**training, "run": str(training["run"])} for curve, training in trained.items()
        },
        "example": example,
        "seconds": time.perf_counter() - start,
    }
    _write_results(out, rows, report)
    _tell_results(console, out, rows, report)
    return report


def _configure(
    corpus: Path, hours: float | None, overrides: Sequence[str]
) -> tuple[RunConfig, SyntheticConfig]:
    """The run's config with its corpus in ``corpus``, and the config of that corpus."""
    config, own = load_config(CONFIG, overrides), load_config(CONFIG)
    synthetic = config.corpus.synthetic
    if synthetic is None or config.corpus != dataclasses.replace(own.corpus, synthetic=synthetic):
        raise ConfigError("corpus: the demo makes its own; legal: keys of corpus.synthetic")
    if not isinstance(config.method, SandwichConfig):
        raise ConfigError(
            f"method: the demo trains a supernet, not {config.method.kind}; legal: sandwich"
        )
    if hours is not None:
        try:
            synthetic = dataclasses.replace(synthetic, hours=hours)
        except ValueError as error:
            raise UsageError(str(error)) from error
    manifests = CorpusConfig(
        synthetic=None,
        base=str(corpus),
        train=("train.jsonl",),
        dev=("dev.jsonl",),
        test=("test.jsonl",),
        root=str(corpus.with_name("cache")),
    )
    return dataclasses.replace(config, corpus=manifests), synthetic


def _baseline_config(
    config: RunConfig, supernet: Mapping[str, Any], statistics: Mapping[str, Any]
) -> RunConfig:
    """Plain dense training with as many utterance passes as the supernet's training."""
    copies = len(config.data.augmentation.speed_factors)
    utterances = statistics["splits"]["train"]["utterances"] * copies
    epochs = supernet["metrics"]["utterance_passes"] / utterances
    training = dataclasses.replace(config.training, epochs=epochs, max_steps=None)
    return dataclasses.replace(
        config, name=f"{config.name}-{BASELINE}", method=DenseConfig(), training=training
    )


def _train(
    config: RunConfig, run: Path, console: Console, *, is_helper: bool = False
) -> dict[str, Any]:
    """Trains or continues the run in ``run``, or keeps it if it is finished."""

    def stage(line: str) -> None:
        console.note(f"   {line}")

    start = time.perf_counter()
    with console.progress("training (steps)") as progress:
        result = pipeline.train(
            config, out=run, is_helper=is_helper, on_progress=progress, on_stage=stage
        )
    seconds = time.perf_counter() - start
    console.note(f"   {result.steps:,} steps in {format_seconds(seconds)}: {result.run}")
    return {
        "run": result.run,
        "steps": result.steps,
        "seconds": seconds,
        "metrics": dict(result.metrics),
    }


def _model_path(models: Path, curve: str, size: str) -> Path:
    """Path of the model of a size: ``models/supernet-25pct``."""
    return models / f"{curve}-{size.replace('%', 'pct')}"


def _sizes(config: RunConfig) -> list[str]:
    """Sizes to extract, the largest first."""
    assert isinstance(config.method, SandwichConfig)
    smallest = str(config.method.min_size)
    limit = parse_size(smallest)
    above = [
        size for size in SIZES if limit.kind != "fraction" or parse_size(size).value > limit.value
    ]
    return [*above, smallest]


def _measure_sizes(
    curve: str,
    run: Path,
    sizes: Sequence[str],
    models: Path,
    test: CutSet,
    heard: Heard,
    console: Console,
) -> list[ResultRow]:
    """Extracts every size from a run, and measures each as a user would load it."""
    rows = []
    account = read_record(run).account
    for size in sizes:
        path = _model_path(models, curve, size)
        extract(run, size=size, out=path)
        result = _evaluate(path, test, heard, console, f"{curve} {size}")
        # Extract again, so that the model card has the word error rate.
        extracted = extract(run, size=size, out=path, wer={"test": round(result.wer, 2)})
        row = ResultRow(
            curve=curve,
            size="dense" if size == "100%" else size,
            parameters=extracted["parameters"],
            nonzero=extracted["nonzero"],
            bytes=extracted["bytes"],
            wer=result.wer,
            wer_low=result.wer_low,
            wer_high=result.wer_high,
            seconds=extracted["seconds"],
            account=account,
        )
        console.note(
            f"   {curve} {row.size}: extracted in {format_seconds(row.seconds)}, "
            f"WER {row.wer:.2f} % on {result.utterances:,} utterances of unseen voices"
        )
        rows.append(row)
    return rows


def _evaluate(
    path: Path, test: CutSet, heard: Heard, console: Console, name: str
) -> EvaluationResult:
    """Measures a model from its files."""
    recognizer = recognizer_of(runs.load_model(path))
    with console.progress(f"recognising ({name})") as progress:
        return recognise(path, recognizer, test, progress=progress, heard=heard)


def _transcribe_one(rows: Sequence[ResultRow], models: Path, test: CutSet) -> dict[str, Any]:
    """Recognises one recording with the smallest model of the supernet."""
    smallest = min((row for row in rows if row.curve == SUPERNET), key=lambda row: row.nonzero)
    # A recording of middle length: neither a single word nor the longest sentence.
    cut = sorted(test, key=lambda cut: (cut.duration, cut.id))[len(test) // 2]
    file = cut.recording.sources[0].source
    path = _model_path(models, SUPERNET, smallest.size)
    transcript = Recognizer.from_path(path).transcribe(file)
    return {
        "model": str(path),
        "file": file,
        "said": cut.supervisions[0].text,
        "text": transcript.text,
        "audio_seconds": transcript.audio_seconds,
        "seconds": transcript.seconds,
        "rtf": transcript.rtf,
    }


def _write_results(out: Path, rows: Sequence[ResultRow], report: Mapping[str, Any]) -> None:
    """Writes the report, the table and the plot; each file appears complete."""
    write_csv(rows, out / "pareto.csv")
    title = "One training run, every size (test on unseen voices)"
    plot_pareto(rows, out / "pareto.png", title=title, labels=LEGEND)
    with replacing(out / "report.json") as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _tell_splits(console: Console, statistics: Mapping[str, Any]) -> None:
    """Shows the sizes of the splits."""
    parts = [
        f"{name} {split['utterances']:,} utterances by {split['speakers']} voices"
        for name, split in statistics["splits"].items()
    ]
    console.note(f"   {'; '.join(parts)}")


def _tell_results(
    console: Console, out: Path, rows: Sequence[ResultRow], report: Mapping[str, Any]
) -> None:
    """Shows the final table, one recording, and the paths of the results."""
    by_curve = {
        curve: [row for row in rows if row.curve == curve] for curve in (SUPERNET, BASELINE)
    }
    columns = ["size", "non-zero", "on disk", "extracted in", "WER %", "95 % interval"]
    if by_curve[BASELINE]:
        columns.append("baseline WER %")
    lines = []
    for number, row in enumerate(by_curve[SUPERNET]):
        line = [
            row.size,
            format_count(row.nonzero),
            format_bytes(row.bytes),
            format_seconds(row.seconds),
            f"{row.wer:.2f}",
            format_interval(row.wer_low, row.wer_high),
        ]
        if by_curve[BASELINE]:
            line.append(f"{by_curve[BASELINE][number].wer:.2f}")
        lines.append(line)
    console.note("")
    drop = ["extracted in", "95 % interval"]
    console.table(columns, lines, title="One training run, every size", drop=drop)
    example = report["example"]
    console.note(f"The smallest model hears one recording (real-time factor {example['rtf']:.3f}):")
    console.note(f"   said:  {example['said']}")
    console.note(f"   heard: {example['text']}")
    console.note("")
    console.note(f"plot:   {out / 'pareto.png'}")
    console.note(f"table:  {out / 'pareto.csv'}")
    console.note(f"models: {out / 'models'}")
    console.note(f"Done in {format_seconds(report['seconds'])}. For any other size, in seconds:")
    console.note(f"   omnisparse extract --run {out / SUPERNET} --size 35%", style="bold")
