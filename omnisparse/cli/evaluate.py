"""The verbs that measure recognition: ``evaluate`` one model, ``compare`` many runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnisparse.cli.devices import takes_workers
from omnisparse.cli.group import CUT_HELP, PATH, FiniteRange, Report, reports
from omnisparse.cli.weights import takes_weights
from omnisparse.console import format_difference, format_interval

if TYPE_CHECKING:
    from omnisparse.evaluation.workers import Workers

MANIFEST_HELP = "NeMo JSON lines or lhotse cuts."
_SHOWN = 10
"""Rows of a table on the screen; the rest is in ``--json``."""


@click.command()
@click.argument("model", type=PATH)
@click.option("--manifest", type=PATH, required=True, help=MANIFEST_HELP)
@click.option("--beam", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--streaming", is_flag=True, help="Recognise chunk by chunk (transducers).")
@click.option("--card", is_flag=True, help="Write the result into the artifact's model card.")
@click.option(
    "--against", type=PATH, metavar="OTHER",
    help="Also evaluate this model, and test whether the two differ (speaker by speaker).",
)  # fmt: skip
@click.option(
    "--transcripts", type=PATH, metavar="FILE",
    help="Write every utterance, worst first: FILE.txt for people, FILE.jsonl for programs.",
)  # fmt: skip
@click.option("--cut-above", type=FiniteRange(min=0), metavar="SECONDS", help=CUT_HELP)
@reports
@takes_weights("model")
@takes_workers
def evaluate(
    report: Report, model: Path, manifest: Path, beam: int, streaming: bool, card: bool,
    against: Path | None, transcripts: Path | None, cut_above: float | None, workers: Workers,
) -> Mapping[str, Any]:  # fmt: skip
    """Measure the word and character error rate of MODEL, with a 95 % interval.

    Shows the most frequent errors, and the rates by length and by speaker, too.
    """
    from omnisparse.pipeline.evaluate import evaluate_model

    row = evaluate_model(
        model, manifest, beam=beam, streaming=streaming, card=card, against=against,
        transcripts=transcripts, cut_above=cut_above, workers=workers, progress=report.progress,
    )  # fmt: skip
    report.note(
        f"WER {_rate_text(row, 'wer')}, {row['words']:,} words in {row['utterances']:,} "
        f"utterances: {row['substitutions']} substituted, {row['deletions']} deleted, "
        f"{row['insertions']} inserted; CER {_rate_text(row, 'cer')}; "
        f"real-time factor {row['rtf']:.3f}"
    )
    _show_errors(report, row)
    for line in row["warnings"]:
        report.warn(line)
    if transcripts is not None:
        report.note(f"every utterance, worst first: {transcripts}")
    if card:
        report.note(f"written into {model / 'README.md'}")
    if against is not None:
        test = row["against"]
        p_value = "no p" if test["p_value"] is None else f"p = {test['p_value']:.2g}"
        report.note(
            f"{against}: WER {test['wer']:.2f} %; difference {test['difference']:+.2f} points "
            f"(95 % interval {format_difference(test['low'], test['high'])}), {p_value}; of these "
            "two nets, not of other seeds"
        )
    return row


def _rate_text(row: Mapping[str, Any], rate: str) -> str:
    """A rate with its interval."""
    low, high = row[f"{rate}_low"], row[f"{rate}_high"]
    if low is None or high is None:
        return f"{row[rate]:.2f} % (no interval)"
    return f"{row[rate]:.2f} % (95 % interval {format_interval(low, high, between=' to ')})"


def _show_errors(report: Report, row: Mapping[str, Any]) -> None:
    """Tables of the most frequent errors, and of the rates by length and speaker."""
    if row["confusions"]:
        report.table(
            ["said", "heard", "times"],
            [
                [one["reference"] or "-", one["hypothesis"] or "-", f"{one['count']:,}"]
                for one in row["confusions"][:_SHOWN]
            ],
            title="Most frequent errors",
        )
    for name, title in (("by_length", "length"), ("by_speaker", "speaker")):
        groups = row[name]
        if len(groups) < 2:
            continue
        shown = groups[:_SHOWN]
        cut = f", the {_SHOWN} with the most errors" if len(shown) < len(groups) else ""
        report.table(
            [title, "utterances", "words", "S", "D", "I", "WER %", "95 % interval", "CER %"],
            [_group_line(group) for group in shown],
            title=f"By {title}{cut}",
        )


def _group_line(group: Mapping[str, Any]) -> list[str]:
    counts = ("utterances", "words", "substitutions", "deletions", "insertions")
    wer, cer = ("-" if group[rate] is None else f"{group[rate]:.2f}" for rate in ("wer", "cer"))
    interval = format_interval(group["wer_low"], group["wer_high"])
    return [group["name"], *(f"{group[count]:,}" for count in counts), wer, interval, cer]


@click.command()
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--by", type=click.Choice(["method", "configuration"]), default="method", show_default=True,
    help="What a row is; with configuration, the first RUN is the reference.",
)  # fmt: skip
@click.option("--out", type=PATH, default=Path("comparison"), show_default=True)
@click.option(
    "--manifest", "manifests", type=PATH, multiple=True,
    help=f"{MANIFEST_HELP} May be given several times; the runs' own test sets if unset.",
)  # fmt: skip
@click.option("--sizes", help="Columns, such as 50%,25%,16M; the sizes of the runs if unset.")
@click.option("--beam", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--reference", type=click.Choice(["pang2018"]), help="Draw a paper's tables beside ours."
)
@click.option(
    "--budget", type=click.Choice(["passes", "updates", "flops"]),
    help="What should be equal between rows: marks those whose budget differs.",
)  # fmt: skip
@click.option(
    "--wandb", type=click.Choice(["auto", "online", "offline", "off"]), default="auto",
    show_default=True, help="Log table and plot; auto: if logged in.",
)  # fmt: skip
@reports
@takes_weights("paths")
@takes_workers
def compare(
    report: Report, paths: tuple[Path, ...], by: Any, out: Path, manifests: tuple[Path, ...],
    sizes: str | None, beam: int, reference: str | None, budget: Any, wandb: Any,
    workers: Workers,
) -> Mapping[str, Any]:  # fmt: skip
    """Compare runs in a table of methods and sizes, with intervals and training costs.

    A supernet gives all sizes by extraction, any other run only its own. Runs of one row with
    different seeds are averaged. With --by configuration, runs of one configuration are a row (for
    example in an ablation); its label is the difference from the reference, and other weights of a
    run, as RUN/weights/ema, are a row of their own. Which of utterance
    passes, updates and operations are equal between rows is always said. Recognised text is
    stored in the runs, so a second comparison is fast. Writes compare.md, .csv, .json and .png into
    OUT.
    """
    from omnisparse.comparison import measure as runs_compare
    from omnisparse.comparison import plan
    from omnisparse.comparison.budgets import budgets_of_rows
    from omnisparse.comparison.candidates import read_candidates
    from omnisparse.comparison.report import write_comparison

    if reference is not None and by != "method":
        raise click.UsageError("--reference needs --by method: a paper's rows are methods")
    candidates, rows = read_candidates(paths, by=by)
    tests = runs_compare.list_manifests(candidates, manifests)
    columns = [size.strip() for size in sizes.split(",")] if sizes else []
    notes: list[str] = []
    models = plan.plan_models(candidates, columns, notes.append)
    for line in notes:
        report.warn(line)
    plan.require_trainings(models)
    if by == "method":  # runs of one configuration may differ in the seeds of their teachers
        plan.require_seeds(models)
    found = runs_compare.measure(
        models, tests, beam=beam, progress=report.progress, tell=report.note, workers=workers
    )
    costs = runs_compare.cost_of_rows(models, rows)
    budgets = budgets_of_rows(models, rows)
    return write_comparison(
        out, found, costs, rows=rows, reference=reference, wandb=wandb, console=report,
        budgets=budgets, budget=budget, notes=notes,
    )  # fmt: skip
