"""The verb ``search``: better subnets of a trained run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnisparse.cli.devices import takes_workers
from omnisparse.cli.group import PATH, Report, reports
from omnisparse.cli.weights import takes_weights
from omnisparse.console import format_interval, format_seconds

if TYPE_CHECKING:
    from omnisparse.evaluation.workers import Workers


@click.command()
@click.option("--run", type=PATH, help="Run directory; runs/latest if unset.")
@click.option(
    "--sizes", required=True, metavar="A,B,C",
    help="Sizes to find a model of: 16M = non-zero parameters, 25% = of the dense net's; or 5ms = "
    "time for 40 ms of audio on this machine.",
)  # fmt: skip
@click.option("--evaluations", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--manifest", type=PATH, help="Utterances; the run's dev split if unset.")
@click.option(
    "--out",
    type=PATH,
    help="Folder of the results; RUN/search if unset, with --ranks RUN/rank_search.",
)
@click.option(
    "--objective", type=click.Choice(["loss", "wer"]), default="loss", show_default=True,
    help="Minimise the label loss (cheap), or word errors (decodes every model).",
)  # fmt: skip
@click.option(
    "--utterances", type=click.IntRange(min=1), default=100, show_default=True,
    help="Size of the subset that ranks models as all utterances do.",
)  # fmt: skip
@click.option(
    "--finalists", type=click.IntRange(min=1), default=2, show_default=True,
    help="Models of each size that are recognised on all utterances, beside the uniform one.",
)  # fmt: skip
@click.option(
    "--group", "layer_groups", multiple=True, metavar="REGEX",
    help="Matrices that match the same text share a sparsity; by layer if unset. Repeatable.",
)  # fmt: skip
@click.option(
    "--spread", type=float, default=3.0, show_default=True,
    help="Densities lie within a factor of 1 + this of the mean.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--ranks", is_flag=True,
    help="Look for SVD ranks of the matrices instead; sizes may be compressions, such as 3x.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(["rl", "random", "tpe", "nsga2"]), default="rl",
    show_default=True, help="With --ranks: reinforcement learning, or a control.",
)  # fmt: skip
@click.option(
    "--reward", type=click.Choice(["walled", "weighted", "thresholded", "amc"]), default="walled",
    show_default=True, help="With --ranks: what a candidate is paid for.",
)  # fmt: skip
@click.option(
    "--budget", type=click.Choice(["parameters", "latency"]), default="parameters",
    show_default=True,
    help="With --ranks: a size limits parameters, or the time of the products on this machine.",
)  # fmt: skip
@click.option(
    "--scheme", type=click.Choice(["stacked", "per_gate", "joint"]), default="stacked",
    show_default=True,
    help="With --ranks, of LSTM layers: a product of all gates, of each gate, or a projection that "
    "two layers share.",
)  # fmt: skip
@reports
@takes_weights("run")
@takes_workers
def search(
    report: Report, run: Path | None, sizes: str, manifest: Path | None, out: Path | None,
    ranks: bool, method: str, reward: str, budget: str, scheme: str, workers: Workers,
    **options: Any,
) -> Mapping[str, Any]:  # fmt: skip
    """Find the best sparsity of each layer for each size, without retraining.

    What was measured is kept in --out: the same command continues a search that was stopped, also
    by kill -9. `extract --size S --front OUT/front.json` writes a model that was found; with
    --ranks, `extract --rank-spec OUT/ranks-S-rl-0.json` does.
    """
    if ranks:
        choices = {"method": method, "reward": reward, "budget": budget, "scheme": scheme}
        return _search_ranks(report, run, sizes, manifest, out, choices, workers, **options)
    if (method, reward, budget, scheme) != ("rl", "walled", "parameters", "stacked"):
        raise click.UsageError("--method, --reward, --budget and --scheme go with --ranks")
    if any(re.fullmatch(r"\s*[\d.]+x\s*", size) for size in sizes.split(",")):
        raise click.UsageError(f"sizes {sizes}: compressions such as 3x go with --ranks")
    from omnisparse.pipeline.search import search_run
    from omnisparse.pipeline.search_task import SearchConfig

    wanted = [size for size in (part.strip() for part in sizes.split(",")) if size]
    with report.progress("searching") as progress:
        result = search_run(
            run, wanted, SearchConfig(**options), manifest=manifest, out=out,
            on_progress=progress, on_stage=report.note, workers=workers,
        )  # fmt: skip
    timed = any(entry["latency_ms"] is not None for entry in result["front"])
    report.table(
        ["size", "non-zero", "WER %", "95 % interval", "CER %", "uniform WER %"]
        + ["ms per 40 ms"] * timed,
        [
            [
                entry["size"],
                f"{entry['nonzero']:,}",
                f"{entry['wer']:.2f}",
                format_interval(entry["wer_low"], entry["wer_high"]),
                "-" if entry["cer"] is None else f"{entry['cer']:.2f}",
                f"{entry['uniform_wer']:.2f}",
                *([f"{entry['latency_ms']:.3f}"] if timed else []),
            ]
            for entry in result["front"]
        ],
    )
    subset = result["subset"]
    report.note(
        f"searched on {subset['utterances']} of {subset['of']} utterances, which rank models they "
        f"were not chosen with as all do with Spearman {_shown(subset['spearman'])}, Kendall "
        f"{_shown(subset['kendall'])} (within a size {_shown(subset['spearman_within_size'])})"
    )
    report.note(
        f"{result['evaluations']} models, {result['evaluated_now']} of them measured now, in "
        f"{format_seconds(result['seconds'])}: {result['path']}"
    )
    return result


def _search_ranks(
    report: Report, run: Path | None, sizes: str, manifest: Path | None, out: Path | None,
    choices: Mapping[str, Any], workers: Workers, *, layer_groups: tuple[str, ...], spread: float,
    **options: Any,
) -> Mapping[str, Any]:  # fmt: skip
    """Looks for ranks, and shows what was found."""
    from omnisparse.pipeline.rank_search import RankSearchConfig, search_ranks
    from omnisparse.search.rewards import Reward

    if layer_groups or spread != 3.0:
        raise click.UsageError("--group and --spread do not go with --ranks")
    wanted = [size for size in (part.strip() for part in sizes.split(",")) if size]
    reward = Reward(kind=choices["reward"])
    config = RankSearchConfig(**{**choices, "reward": reward}, **options)
    with report.progress("searching") as progress:
        result = search_ranks(
            run, wanted, config, manifest=manifest, out=out, on_progress=progress,
            on_stage=report.note, workers=workers,
        )  # fmt: skip
    report.table(
        ["size", "parameters", "WER %", "uniform WER %", "energy WER %"],
        [
            [
                entry["size"],
                f"{entry['nonzero']:,}",
                f"{entry['wer']:.2f}",
                f"{entry['uniform_wer']:.2f}",
                f"{entry['energy_wer']:.2f}",
            ]
            for entry in result["front"]
        ],
    )
    for entry in result["front"]:
        better = [name for name in ("uniform", "energy") if entry[f"{name}_wer"] < entry["wer"]]
        if better:
            report.warn(
                f"{entry['size']}: {' and '.join(better)} ranks recognise better than what was "
                "found; more --evaluations may help"
            )
    report.note(
        f"{result['evaluations']} candidates, {result['evaluated_now']} measurements now, "
        f"{format_seconds(result['seconds'])} in all: {result['path']}"
    )
    return result


def _shown(correlation: float | None) -> str:
    return "-" if correlation is None else f"{correlation:.2f}"
