"""The verb ``train`` and the scripts in ``recipes/``: one code path for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnisparse.cli.group import EXIT_FAILED, PATH, OneLineFailures, Report, reports

if TYPE_CHECKING:
    from omnisparse.config import RunConfig

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
OUT_HELP = "Run directory; runs/<name> if unset."
DRY_RUN_HELP = "Only measure steps, memory and speed; leaves no run behind."
ACCEPT_HELP = "Continue a run although its training data, teacher or init has changed."
LIMIT_HELP = "Most parameters of a recurrent layer, such as 4M; prints every layer's."
EMBEDDED_CONFIG = Path(__file__).parents[1] / "configs" / "las_assistant.yaml"
"""The configuration of a recipe if none is given."""


def train_and_report(
    report: Report,
    config: RunConfig,
    *,
    out: Path | None = None,
    row: str | None = None,
    size: str | None = None,
    is_helper: bool = False,
) -> dict[str, Any]:
    """Train with a progress bar; with ``report.dry_run``, only measure what it would take.

    Args:
        report: Console for messages.
        config: The run configuration.
        out: Run directory; None for ``runs/<name>``.
        row: Row of a comparison for which the run is trained.
        size: Size for which the run is trained.
        is_helper: Whether another run needs it; then ``runs/latest`` is not changed.

    Returns:
        ``run``, ``steps``, ``metrics``, and the cost of the run under ``cost``; or what
        :func:`omnisparse.pipeline.dry_run.dry_run` gives.
    """
    if report.dry_run:
        return _measure(report, config)
    from omnisparse.pipeline import train as pipeline
    from omnisparse.runs.record import read_record

    with report.progress("training") as progress:
        result = pipeline.train(
            config, out=out, row=row, size=size, is_helper=is_helper,
            accept_changes=report.accept_changes, on_progress=progress, on_stage=report.note,
        )  # fmt: skip
    report.note(f"{result.steps:,} steps: {result.run}")
    cost = read_record(result.run).account.to_dict()
    return {"run": result.run, "steps": result.steps, "metrics": result.metrics, "cost": cost}


def _measure(report: Report, config: RunConfig) -> dict[str, Any]:
    """Measure a training without doing it, and print what was found."""
    from omnisparse.console import format_bytes, format_seconds
    from omnisparse.pipeline.dry_run import dry_run

    with report.progress("measuring") as progress:
        row = dry_run(config, on_step=progress, on_stage=report.note)
    where = f"{row['processes']} x {row['device']}, {row['precision']}"
    for name, value in (
        ("steps", f"{row['steps']:,}"),
        ("peak memory", f"{format_bytes(row['peak_bytes'])} of a process, beyond its start "
         f"(largest batch: {row['batch_audio_seconds']:,.0f} s of audio)"),
        ("speed", f"{row['audio_seconds_per_second']:,.1f} audio seconds a second ({where})"),
        ("all steps", f"about {format_seconds(row['estimated_seconds'])}, without evaluations"),
    ):  # fmt: skip
        report.result(f"{name:12} {value}")
    return row


@click.command()
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=PATH, help=OUT_HELP)
@click.option("--max-layer-parameters", metavar="SIZE", help=LIMIT_HELP)
@click.option("--accept-changes", is_flag=True, help=ACCEPT_HELP)
@click.option("--dry-run", is_flag=True, help=DRY_RUN_HELP)
@reports
def train(
    report: Report,
    config: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    max_layer_parameters: str | None,
    accept_changes: bool,
    dry_run: bool,
) -> Mapping[str, Any]:
    """Train what CONFIG (YAML) describes; KEY=VALUE overrides it.

    With `training.max_steps=0` the run holds the untrained net.
    """
    from omnisparse.config import load_config

    report.accept_changes, report.dry_run = accept_changes, dry_run
    settings = [*overrides, *limit_override(max_layer_parameters)]
    return train_and_report(report, load_config(config, settings), out=out)


def limit_override(max_layer_parameters: str | None) -> list[str]:
    """The option ``--max-layer-parameters`` as an override of the configuration."""
    return [f"max_layer_parameters={max_layer_parameters}"] if max_layer_parameters else []


def join_flags(overrides: Sequence[str]) -> list[str]:
    """Turns ``--key=value`` and ``--key value`` of W&B agents into ``key=value``."""
    joined = []
    rest = iter(overrides)
    for override in rest:
        if not override.startswith("--"):
            joined.append(override)
            continue
        key, equals, value = override[2:].partition("=")
        joined.append(f"{key.replace('-', '_')}={value if equals else next(rest, '')}")
    return joined


def _check(config: Path, overrides: Sequence[str]) -> Callable[..., Mapping[str, Any]]:
    """The plain recipe: trains the net of the configuration."""
    from omnisparse.config import load_config

    loaded = load_config(config, join_flags(overrides))
    return lambda report, out: train_and_report(report, loaded, out=out)


def run_recipe(
    arguments: Sequence[str],
    *,
    defaults: Sequence[str] = (),
    plan: Callable[[Path, Sequence[str]], Callable[..., Mapping[str, Any]]] = _check,
) -> int:
    """The main function of the scripts in ``recipes/``: training, on any number of processes.

    The configuration is read and checked before further processes are started, so that a mistake in
    it is reported only once.

    Args:
        arguments: ``[--config FILE] [--out DIR] [--json] [key=value ...]``, as on a command line;
            ``--key=value`` and ``--key value``, which W&B agents write, are the same as
            ``key=value``.
        defaults: ``key=value`` settings of the recipe; those in ``arguments`` override them.
        plan: Checks a configuration file and its overrides, and returns the training function,
            which is called with the report and the requested run directory.

    Returns:
        The exit code.
    """

    @click.command(
        cls=OneLineFailures, context_settings={**CONTEXT_SETTINGS, "ignore_unknown_options": True}
    )
    @click.option("--config", type=PATH, help="YAML; embedded if unset.")
    @click.option("--out", type=PATH, help=OUT_HELP)
    @click.option("--max-layer-parameters", metavar="SIZE", help=LIMIT_HELP)
    @click.option("--accept-changes", is_flag=True, help=ACCEPT_HELP)
    @click.option("--dry-run", is_flag=True, help=DRY_RUN_HELP)
    @click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", type=click.UNPROCESSED)
    @reports
    def recipe(
        report: Report,
        config: Path | None,
        out: Path | None,
        max_layer_parameters: str | None,
        accept_changes: bool,
        dry_run: bool,
        overrides: tuple[str, ...],
    ) -> Mapping[str, Any]:
        """Train; KEY=VALUE overrides the configuration."""
        settings = [*defaults, *overrides, *limit_override(max_layer_parameters)]
        report.accept_changes, report.dry_run = accept_changes, dry_run
        train = plan(config or EMBEDDED_CONFIG, settings)
        from omnisparse.training.launch import ensure_cpu_processes

        ensure_cpu_processes()
        return train(report, out)

    try:
        recipe.main(list(arguments))
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else EXIT_FAILED
    return 0
