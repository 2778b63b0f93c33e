"""The verbs that measure recognition: ``evaluate`` one model, ``compare`` many runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnisparse.cli.group import PATH, Report, reports

if TYPE_CHECKING:
    from omnisparse.evaluation.evaluate import EvaluationResult

MANIFEST_HELP = "NeMo JSON lines or lhotse cuts."


@click.command()
@click.argument("model", type=PATH)
@click.option("--manifest", type=PATH, required=True, help=MANIFEST_HELP)
@click.option("--beam", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--streaming", is_flag=True, help="Recognise chunk by chunk (transducers).")
@click.option("--card", is_flag=True, help="Write the result into the artifact's model card.")
@click.option(
    "--against", type=PATH, metavar="OTHER",
    help="Recognise with this model, too, and test whether the two differ (paired bootstrap).",
)  # fmt: skip
@reports
def evaluate(
    report: Report, model: Path, manifest: Path, beam: int, streaming: bool, card: bool,
    against: Path | None,
) -> Mapping[str, Any]:  # fmt: skip
    """Measure the word error rate of MODEL, with a 95 % bootstrap interval."""
    from omnisparse.artifact import update_card
    from omnisparse.data.corpora import load_manifest, manifest_name
    from omnisparse.deploy.recognizer import Recognizer
    from omnisparse.errors import OmnisparseError
    from omnisparse.evaluation.evaluate import evaluate as evaluate_model
    from omnisparse.evaluation.wer import paired_bootstrap
    from omnisparse.runs import directory as runs
    from omnisparse.runs.record import read_account

    cuts = load_manifest(manifest)
    models = {path: runs.load_model(path) for path in (model, against) if path is not None}
    if card and models[model].kind != "artifact":
        raise OmnisparseError(f"{model}: a run has no model card; `omnisparse extract` makes one")
    sizes, account = runs.inspect(model), read_account(model)

    recognizers = {
        path: Recognizer(loaded.model, loaded.tokenizer, loaded.extractor)
        for path, loaded in models.items()
    }
    if streaming:
        for recognizer in recognizers.values():
            recognizer.stream(beam=beam)  # one that cannot is told before any time is spent

    def recognise(path: Path, loaded: runs.LoadedModel) -> EvaluationResult:
        recognizer = recognizers[path]

        def transcribe_stream(samples: Any) -> str:
            return recognizer.transcribe(samples, beam=beam, streaming=True).text

        with report.progress("recognising") as progress:
            return evaluate_model(
                loaded.model, cuts, extractor=loaded.extractor, tokenizer=loaded.tokenizer,
                beam=beam, transcribe=transcribe_stream if streaming else None, progress=progress,
            )  # fmt: skip

    results = {path: recognise(path, loaded) for path, loaded in models.items()}
    result = results[model]
    report.note(
        f"WER {result.wer:.2f} % (95 % interval {result.wer_low:.2f} to {result.wer_high:.2f}), "
        f"{result.words:,} words in {result.utterances:,} utterances: "
        f"{result.substitutions} substituted, {result.deletions} deleted, "
        f"{result.insertions} inserted; real-time factor {result.rtf:.3f}"
    )
    row: dict[str, Any] = result.to_dict()
    if card:
        name = manifest_name(manifest)
        name += f" beam {beam}" * (beam > 1) + " streaming" * streaming
        known = ("wer", "wer_low", "wer_high", "utterances")
        update_card(model, name, {key: row[key] for key in known})
        report.note(f"written into {model / 'README.md'}")
    if against is not None:
        other = results[against]
        test = paired_bootstrap(other.counts, result.counts)
        row["against"] = {"model": str(against), "wer": other.wer, **asdict(test)}
        report.note(
            f"{against}: WER {other.wer:.2f} %; difference {test.difference:+.2f} points "
            f"(95 % interval {test.low:+.2f} to {test.high:+.2f}), p = {test.p_value:.2g}"
        )
    return {
        **row,
        **{key: sizes[key] for key in ("parameters", "nonzero", "bytes")},
        **account.to_dict(),
    }


@click.command()
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--by", type=click.Choice(["method", "configuration"]), default="method", show_default=True,
    help="What a row is; of configurations, the first RUN's is the reference.",
)  # fmt: skip
@click.option("--out", type=PATH, default=Path("comparison"), show_default=True)
@click.option(
    "--manifest", "manifests", type=PATH, multiple=True,
    help=f"{MANIFEST_HELP} May be given several times; the runs' own test sets if unset.",
)  # fmt: skip
@click.option(
    "--sizes", help="Columns, such as 50%,25%,16M; those the runs were made for if unset."
)
@click.option("--beam", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--reference", type=click.Choice(["pang2018"]), help="Draw a paper's tables beside ours."
)
@click.option(
    "--wandb", type=click.Choice(["auto", "online", "offline", "off"]), default="auto",
    show_default=True, help="Log table and plot; auto: if logged in.",
)  # fmt: skip
@reports
def compare(
    report: Report, paths: tuple[Path, ...], by: Any, out: Path, manifests: tuple[Path, ...],
    sizes: str | None, beam: int, reference: str | None, wandb: Any,
) -> Mapping[str, Any]:  # fmt: skip
    """Set runs side by side: method against size, with intervals and what each row cost.

    A supernet gives all sizes by extraction, any other run its own. Runs of one row that differ in
    their seed are averaged. With --by configuration, rows are what the runs were trained as, such
    as the arms of an ablation, each labelled by what differs from the reference. Recognised text
    is kept in the runs, so a second comparison is quick. Writes compare.md, .csv, .json and .png
    into OUT.
    """
    from omnisparse.comparison import measure as runs_compare
    from omnisparse.comparison.candidates import read_candidates
    from omnisparse.comparison.report import write_comparison

    if reference is not None and by != "method":
        raise click.UsageError("--reference goes with --by method: a paper's rows are methods")
    candidates, rows = read_candidates(paths, by=by)
    tests = runs_compare.list_manifests(candidates, manifests)
    columns = [size.strip() for size in sizes.split(",")] if sizes else []
    models = runs_compare.plan_models(candidates, columns, report.warn)
    if by == "method":  # runs of one configuration may differ in the seeds of their teachers
        runs_compare.require_seeds(models)
    found = runs_compare.measure(
        models, tests, beam=beam, progress=report.progress, tell=report.note
    )
    costs = runs_compare.cost_of_rows(models, rows)
    return write_comparison(
        out, found, costs, rows=rows, reference=reference, wandb=wandb, console=report
    )
