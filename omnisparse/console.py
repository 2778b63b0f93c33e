"""Output for people: notes, tables and progress on stderr; stdout is only for results.

rich is imported when something is shown for the first time, so ``omnisparse --help`` stays fast.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

ProgressCallback = Callable[..., None]
"""``(done, total, metrics)``; metrics, a mapping of names to floats, may be left out."""

RESULT_FILE = "OMNISPARSE_RESULT_FILE"
"""Environment variable: file for a verb's JSON object, used by programs that start the verb."""

SWEEP = "OMNISPARSE_SWEEP"
"""Environment variable: folder of the sweep that started the program."""

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BEFORE_FIRST_LINE = 10.0
WIDTH_WITHOUT_TERMINAL = 120
_MAX_METRICS_SHOWN = 3
_BESIDE = ("gradient_norm",)
"""What stands beside the bar of a training, whose losses have lines of their own."""
_ANY_WIDTH = 10_000


class Console:
    """Writes messages for people to stderr.

    Args:
        quiet: Show only warnings: no notes, tables or progress.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @property
    def _rich(self) -> Any:
        """A rich console on the present stderr (tests and redirections replace stderr)."""
        from rich.console import Console as RichConsole

        # Logs and pipes have no width, so lines are not cut there.
        width = None if sys.stderr.isatty() else WIDTH_WITHOUT_TERMINAL
        return RichConsole(stderr=True, highlight=False, soft_wrap=True, width=width)

    def note(self, text: str, *, style: str = "") -> None:
        """Shows one line."""
        if not self.quiet:
            self._rich.print(text, style=style, markup=False)

    def warn(self, text: str) -> None:
        """Shows one line even if the console is quiet."""
        self._rich.print(text, style="yellow", markup=False)

    def heading(self, text: str) -> None:
        """Shows the heading of a part of a longer task."""
        self.note(text, style="bold")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str = "",
        drop: Sequence[str] = (),
    ) -> None:
        """Shows a table; the first column is aligned left, the others right.

        Where it is too wide, whole columns are left out and named below it: no number is ever cut.
        The text of the first column is, at last.

        Args:
            columns: Their headings.
            rows: Their cells.
            title: A line above.
            drop: Headings of columns that may be left out, the first to go first; then all others
                from the right, but for the first two columns.
        """
        if self.quiet:
            return
        rich_console = self._rich
        order = [*drop, *(name for name in reversed(columns[2:]) if name not in drop)]
        left_out: list[str] = []
        for name in [None, *order]:
            if name is not None:
                left_out.append(name)
            kept = [i for i, column in enumerate(columns) if column not in left_out]
            table = _table([columns[i] for i in kept], [[r[i] for i in kept] for r in rows], title)
            if _width_of(table, rich_console) <= rich_console.width:
                break
        table.columns[0].no_wrap = False
        rich_console.print(table)
        named = [name for name in columns if name in left_out and name]
        if named:
            self.note(f"no room for: {', '.join(named)}", style="dim")

    def fits(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
        """Whether a table can be shown with all its columns."""
        rich_console = self._rich
        return _width_of(_table(columns, rows, ""), rich_console) <= int(rich_console.width)

    @contextmanager
    def growing_text(self) -> Iterator[Callable[[str], None] | None]:
        """Shows a growing text: a line on a terminal, None without a terminal."""
        if self.quiet or not self._rich.is_terminal:
            yield None
        else:
            with _growing_line(self._rich) as callback:
                yield callback

    @contextmanager
    def progress(self, description: str) -> Iterator[ProgressCallback]:
        """Shows the progress of a task: a bar on a terminal, otherwise a line now and then."""
        if self.quiet:
            yield lambda done, total, metrics=None: None
        elif self._rich.is_terminal:
            with _bar(self._rich, description) as callback:
                yield callback
        else:
            yield _PlainProgress(self, description)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Any:
    """A rich table without a box around it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title or None,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _width_of(table: Any, rich_console: Any) -> int:
    """Columns of the screen that a table takes where nothing is cut."""
    from rich.measure import Measurement

    wide = rich_console.options.update(width=_ANY_WIDTH)
    return int(Measurement.get(rich_console, wide, table).maximum)


@contextmanager
def _growing_line(rich_console: Any) -> Iterator[Callable[[str], None]]:
    """One line with the end of a growing text; it is removed afterwards."""
    from rich.live import Live
    from rich.text import Text

    with Live(console=rich_console, transient=True, refresh_per_second=10) as live:

        def update(text: str) -> None:
            # The newest words are important: a text that is too long loses its beginning.
            line = Text(text)
            excess = line.cell_len - (rich_console.width - 1)
            live.update(line if excess <= 0 else Text("…" + text[excess + 1 :]))

        yield update


@contextmanager
def _bar(rich_console: Any, description: str) -> Iterator[ProgressCallback]:
    """A progress bar that shows the latest metrics and the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[metrics]}"),
    )

    class WithMembers(Progress):
        """The bar, and below it a line for each loss."""

        members: Mapping[str, Any] = {}

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(line, style="dim") for line in member_lines(self.members))

    with WithMembers(*columns, console=rich_console) as progress:
        task = progress.add_task(description, total=None, metrics="")

        def update(
            done: float, total: float | None, metrics: Mapping[str, Any] | None = None
        ) -> None:
            progress.update(task, completed=done, total=total)
            if metrics:
                progress.members = metrics
                is_training = bool(member_lines(metrics))
                # Beside the time left there is room for little.
                beside = {k: v for k, v in metrics.items() if not is_training or k in _BESIDE}
                progress.update(task, metrics=format_metrics(beside))

        yield update


def member_lines(metrics: Mapping[str, Any]) -> list[str]:
    """A line for each loss of a training: its member, its value, and a bar beside the largest."""
    losses = {
        name.removeprefix("loss/"): float(value)
        for name, value in metrics.items()
        if name.startswith("loss/")
    }
    width = max(map(len, losses), default=0)
    largest = max(losses.values(), default=0.0)
    return [
        f"  {name:<{width}}  {value:8.4g}  {'━' * round(24 * max(value, 0) / (largest or 1.0))}"
        for name, value in losses.items()
    ]


class _PlainProgress:
    """Progress for logs and pipes: a line every half minute, and at the end of longer tasks."""

    def __init__(self, console: Console, description: str) -> None:
        self.console = console
        self.description = description
        self.last_line = time.monotonic() - SECONDS_BETWEEN_LINES + SECONDS_BEFORE_FIRST_LINE
        self.has_spoken = False
        self.first: tuple[float, float] | None = None  # a continued task does not begin at 0

    def __call__(
        self, done: float, total: float | None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        now = time.monotonic()
        self.first = self.first or (now, done)
        ends = total is not None and done >= total and self.has_spoken
        if not ends and now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        self.has_spoken = not ends
        of_total = f"/{total:g}" if total is not None else ""
        text = f"{self.description}: {done:g}{of_total}"
        if total is not None and not ends and done > self.first[1]:
            left = (now - self.first[0]) / (done - self.first[1]) * (total - done)
            text += f", {format_seconds(left)} left"
        self.console.note(f"{text}  {format_metrics(metrics)}" if metrics else text)


def show_faults() -> None:
    """Let Python name the line where a library breaks the process.

    With this, stops by SIGTERM ended well that ended in a corrupt heap without (0 of 14 against 8
    of 20 on one machine; plain torch shows the same).
    """
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        with contextlib.suppress(OSError, ValueError):  # no file behind it, as in a notebook
            faulthandler.enable(file=sys.__stderr__)


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """A few numbers of a mapping on one line, losses first."""
    numbers = [
        f"{name} {value:.4g}"
        for name, value in sorted(metrics.items(), key=lambda item: not item[0].startswith("loss"))
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return "  ".join(numbers[:_MAX_METRICS_SHOWN])


def format_interval(low: float | None, high: float | None, *, between: str = " - ") -> str:
    """The ends of an interval in percent, or a dash where there is none: ``8.00 - 9.25``."""
    return "-" if low is None or high is None else f"{low:.2f}{between}{high:.2f}"


def format_difference(low: float | None, high: float | None, *, decimals: int = 2) -> str:
    """The ends of an interval of a difference, or a dash without: ``-1.20 to +0.40``."""
    if low is None or high is None:
        return "-"
    return f"{low:+.{decimals}f} to {high:+.{decimals}f}"


def format_bytes(count: float) -> str:
    """A number of bytes in short form, in powers of 1000: ``1.3 MB``."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration in short form: ``0.42 s``, ``5 min 03 s``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def print_error(message: str, *, is_failure: bool = True) -> None:
    """Prints a failure as one line on stderr; line breaks in the message are removed.

    Args:
        message: What happened.
        is_failure: Whether it is one; False for a stop that was asked for.
    """
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"omnisparse: {'error: ' if is_failure else ''}{line}", file=sys.stderr)
