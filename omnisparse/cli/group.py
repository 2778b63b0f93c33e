"""Code shared by all verbs: sections in the help, failures as one line, ``--json``."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from omnisparse.console import RESULT_FILE, Console, print_error
from omnisparse.errors import OmnisparseError

PATH = click.Path(path_type=Path)


class PlaceType(click.Path):
    """A path, or an unchanged ``http(s)://`` address."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """The address, or the path."""
        from omnisparse.nested import is_url

        return str(value) if is_url(value) else Path(str(super().convert(value, param, ctx)))


PLACE = PlaceType()


class FiniteRange(click.FloatRange):
    """A range of numbers without ``nan``, which no comparison refuses, and ``inf``."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


CUT_HELP = (
    "Cut longer audio at pauses; 0 for never. If unset: for a LAS the longest utterance that it "
    "was trained on, for a transducer never."
)
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
FIRST_SIGNAL_CODE = 129
"""Exit codes from this number on mean a signal: 128 plus its number."""
EXIT_NO_READER = 141
"""Exit code of a tool that SIGPIPE ended, as in shells."""


class OneLineFailures(click.Command):
    """A command whose failures become one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; errors for the user are shown in one line, without a traceback."""
        with failures_in_one_line(ctx, debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


class Verbs(OneLineFailures, click.Group):
    """The verbs in their sections; failures become one line and an exit code.

    Args:
        sections: Title of each section of the help, and the names of its verbs.
        **settings: Arguments of click's groups.
    """

    def __init__(
        self, *, sections: Mapping[str, Sequence[str]] | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.sections = sections or {}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs by section instead of alphabetically."""
        for section, names in self.sections.items():
            rows = [
                (name, self.commands[name].get_short_help_str(limit=150))
                for name in names
                if name in self.commands
            ]
            with formatter.section(section):
                formatter.write_dl(rows)


@contextlib.contextmanager
def failures_in_one_line(ctx: click.Context, *, debug: bool) -> Iterator[None]:
    """Turns errors for the user into one line on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt as error:
        if is_main_process():
            print_error(str(error) or "interrupted", is_failure=False)
        ctx.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        if debug or extra_of(error) is None:
            raise
        verb = ctx.invoked_subcommand or ctx.info_name
        print_error(
            f"{verb} needs {error.name}, which is not installed: "
            f"pip install 'omnisparse[{extra_of(error)}]'"
        )
        ctx.exit(EXIT_FAILED)
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported
            raise
        print_error(f"out of memory: {'. '.join(str(error).split('. ')[:2])}")
        ctx.exit(EXIT_FAILED)
    except (OmnisparseError, ValueError, OSError, MemoryError) as error:
        if debug:
            raise
        code = getattr(error, "exit_code", EXIT_FAILED)
        if is_main_process() or not getattr(error, "on_every_process", False):
            print_error(describe(error), is_failure=code < FIRST_SIGNAL_CODE)
        ctx.exit(code)


EXTRAS = {
    "train": "torch torchaudio accelerate espeakng_loader jiwer lhotse matplotlib optuna psutil "
    "rapidfuzz wandb",
    "deploy": "onnx onnxruntime sherpa_onnx",
}
"""What a light install has not: packages by the extra that brings them."""


def extra_of(error: ModuleNotFoundError) -> str | None:
    """The extra that brings a module that is missing; None if none does."""
    root = (error.name or "").partition(".")[0]
    return next((extra for extra, roots in EXTRAS.items() if root in roots.split()), None)


def describe(error: Exception) -> str:
    """The message of an error, never empty; for system errors it starts with the file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory"
    return str(error) or type(error).__name__


def is_main_process() -> bool:
    """False only in the second and further processes of one training."""
    return os.environ.get("RANK", "0") == "0"


class Report(Console):
    """The console of one verb, which also prints its results."""

    def __init__(self, *, as_json: bool) -> None:
        # Of several processes of one training, only the first prints.
        super().__init__(quiet=not is_main_process())
        self.as_json = as_json
        self.stdout = sys.stdout
        self.has_failed = False
        self.accept_changes = False
        """Whether trainings continue although their data or a teacher has changed."""
        self.dry_run = False
        """Whether trainings are only measured."""

    def result(self, text: str) -> None:
        """Prints a line of the result on stdout, unless the result is printed as JSON."""
        if not self.as_json:
            _print_result(text, self.stdout)


def reports(function: Callable[..., Mapping[str, Any]]) -> Callable[..., None]:
    """Gives a verb ``--json``: the mapping it returns is then printed as one object on stdout."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @functools.wraps(function)
    def verb(*args: Any, as_json: bool, **options: Any) -> None:
        report = Report(as_json=as_json)
        # Output of libraries must not be mixed with the results.
        with contextlib.redirect_stdout(sys.stderr):
            result = function(report, *args, **options)
        if not report.quiet:
            _give_result(json.dumps(_plain(result), allow_nan=False), as_json=as_json)
        if report.has_failed:
            sys.exit(EXIT_FAILED)

    return verb


def _give_result(text: str, *, as_json: bool) -> None:
    """Writes the JSON object to stdout or to the result file, if requested."""
    if file := os.environ.get(RESULT_FILE):
        Path(file).write_text(text + "\n", encoding="utf-8")
    if as_json:
        _print_result(text, sys.stdout)


def _print_result(text: str, stdout: TextIO) -> None:
    """Prints a line; exits without a message if its reader has closed the pipe, as `head` does."""
    try:
        print(text, file=stdout, flush=True)
    except BrokenPipeError:
        # The rest of the buffer must not cause another error when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        sys.exit(EXIT_NO_READER)


def _plain(value: Any) -> Any:
    """JSON-serialisable data: paths become strings, numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str | None) else str(value)
