"""The command line: each verb parses its options and calls one function.

Everything heavy is imported inside the verb that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os

import click

from omnisparse.cli.bench import bench
from omnisparse.cli.data import prepare
from omnisparse.cli.demo import demo
from omnisparse.cli.evaluate import compare, evaluate
from omnisparse.cli.export import export
from omnisparse.cli.extract import extract, grow
from omnisparse.cli.group import Verbs
from omnisparse.cli.report import report
from omnisparse.cli.runs import runs
from omnisparse.cli.search import search
from omnisparse.cli.serve import serve
from omnisparse.cli.sweep import sweep
from omnisparse.cli.train import CONTEXT_SETTINGS, run_recipe, train
from omnisparse.cli.use import inspect, transcribe
from omnisparse.version import __version__

__all__ = ["main", "run_recipe", "verbs"]

SECTIONS = {
    "Start here": ("demo",),
    "Data": ("prepare",),
    "Train once, extract every size": ("train", "search", "extract", "grow"),
    "Measure and use": ("runs", "report", "evaluate", "inspect", "transcribe", "export", "serve"),
    "Compare methods": ("sweep", "compare"),
    "Compare runtimes": ("bench",),
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
    stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 bad usage; 130, 143 and 138
    after SIGINT, SIGTERM and SIGUSR1, with what was trained in a checkpoint.
    """


for _verb in (
    demo,
    prepare,
    train,
    extract,
    grow,
    search,
    runs,
    report,
    evaluate,
    bench,
    inspect,
    transcribe,
    export,
    serve,
    compare,
    sweep,
):
    verbs.add_command(_verb)


def main() -> None:
    """Entry point of the ``omnisparse`` command."""
    verbs(prog_name="omnisparse")


if __name__ == "__main__":
    main()
