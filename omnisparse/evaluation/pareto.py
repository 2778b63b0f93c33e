"""Results of several models side by side: as CSV, and as a plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from omnisparse.durable import replacing
from omnisparse.evaluation.account import TrainingAccount

COLOURS = ("#0b6e99", "#d9730d", "#6940a5", "#448361", "#ad1a72", "#787774", "#c9a400", "#1b1b1b")
"""Colours of curves, bars and points, by number."""

_LEAST_TICK_RATIO = 1.2
_SHARE_LEFT_EMPTY = 0.45
"""Where all rates are above this share of the highest, the axis does not start at 0."""
_SIDE_BY_SIDE = 1.018
"""Factor between the places of two curves at one size, so that their intervals can be told."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of curves, by number."""


class SizedResult(Protocol):
    """The facts about a model that a plot of WER against size needs."""

    @property
    def nonzero(self) -> int:
        """Non-zero parameters of the whole model."""
        ...

    @property
    def wer(self) -> float:
        """Word error rate, percent."""
        ...

    @property
    def wer_low(self) -> float | None:
        """Lower end of the 95 % interval, percent; None where there is none."""
        ...

    @property
    def wer_high(self) -> float | None:
        """Upper end of the 95 % interval, percent; None where there is none."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """One model of one size: its storage and its recognition results."""

    curve: str
    """The method that made it; the rows of one method are one curve."""

    size: str
    """The requested size, such as ``25%``; ``dense`` for the whole net."""

    parameters: int
    """Parameters of the dense net."""

    nonzero: int
    """Non-zero parameters of the whole model."""

    bytes: int
    """Bytes of the files written."""

    wer: float
    """Word error rate, percent."""

    wer_low: float | None
    """Lower end of the 95 % interval, percent; None where there is none."""

    wer_high: float | None
    """Upper end of the 95 % interval, percent; None where there is none."""

    seconds: float
    """Wall time it took to make this size from the trained net."""

    account: TrainingAccount = field(default_factory=TrainingAccount)
    """Cost of the training that it comes from."""

    def to_dict(self) -> dict[str, Any]:
        """All fields on one level, including those of the account, ready for JSON."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        account: TrainingAccount = own.pop("account")
        return {**own, **account.to_dict()}


def write_csv(rows: Sequence[ResultRow], path: Path) -> None:
    """Writes the rows with a header line; the file appears complete or not at all."""
    write_records([row.to_dict() for row in rows], path)


def write_records(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes mappings with the same keys as CSV; the file appears complete or not at all.

    Raises:
        ValueError: If there is no record.
    """
    if not records:
        raise ValueError("records: expected at least one, got none")
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def plot_pareto(
    rows: Sequence[ResultRow],
    path: Path,
    *,
    title: str,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Plots WER against non-zero parameters, one line per curve, intervals as error bars.

    The legend says what each curve cost to train, in utterance passes.

    Args:
        rows: The models; the order of first appearance of a curve is its order in the legend.
        path: The image to write; its suffix (``.png``, ``.svg``, ``.pdf``) is the format.
        title: Printed above the plot.
        labels: Names of curves in the legend, if they differ from the curves' own names.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("rows: expected at least one model to plot, got none")
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    curves = list(dict.fromkeys(row.curve for row in rows))
    for number, curve in enumerate(curves):
        chosen = sorted((row for row in rows if row.curve == curve), key=lambda row: row.nonzero)
        passes = chosen[0].account.utterance_passes
        cost = f" ({format_count(passes)} utterance passes)" if passes else ""
        draw_curve(axes, chosen, number, f"{(labels or {}).get(curve, curve)}{cost}")
    _annotate(axes, [row for row in rows if row.curve == curves[0]])
    style_size_axes(axes, rows)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.legend(frameon=False)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches; it uses no window system and no pyplot state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure; the file appears complete or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial)


def style_size_axes(axes: Any, rows: Sequence[SizedResult]) -> None:
    """Axes of WER against size: a logarithmic scale with the existing sizes as ticks."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log")
    sizes = sorted({row.nonzero for row in rows})
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    ticks: list[int] = []
    for size in sizes:  # labels of nearly equal sizes would overlap
        if not ticks or size > _LEAST_TICK_RATIO * ticks[-1]:
            ticks.append(size)
    axes.set_xticks(ticks if len(ticks) <= 8 else [ticks[0], ticks[-1]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = wer_limits(rows)
    axes.set_ylim(low, high)
    axes.set_xlabel("non-zero parameters (log scale)")
    start = f" (the axis starts at {low:g})" if low else ""
    axes.set_ylabel(f"word error rate, %{start}")
    style_axes(axes)


def wer_limits(rows: Sequence[SizedResult]) -> tuple[float, float]:
    """Ends of an axis of word error rates, in percent.

    It starts at 0, but where all rates are far from 0 and close to each other: there curves would
    lie over each other. It ends above the highest rate. Above 100 % nothing is recognised any
    more; a curve that leaves the plot says so well enough.
    """
    highest = max(row.wer if row.wer_high is None else row.wer_high for row in rows)
    highest = min(105.0, 1.08 * highest)
    if highest <= 0:
        return 0.0, 1.0
    lowest = min(row.wer if row.wer_low is None else row.wer_low for row in rows)
    if lowest < _SHARE_LEFT_EMPTY * highest:
        return 0.0, highest
    margin = max(0.02 * highest, 0.08 * (highest - lowest))
    return float(max(0, math.floor(lowest - margin))), highest


def style_axes(axes: Any) -> None:
    """Light grid, no box."""
    axes.grid(visible=True, which="major", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(
    axes: Any, rows: Sequence[SizedResult], number: int, label: str, *, aside: float = 0.0
) -> None:
    """Draws one method's models, smallest first, with their intervals.

    Args:
        axes: Where.
        rows: The models.
        number: Of the curve: it decides colour and marker.
        label: Of the legend.
        aside: Steps to the right of the models' sizes, so that curves do not hide each other.
    """
    wers = [row.wer for row in rows]
    # Rarely, a percentile interval does not contain its point; bars cannot be negative.
    below = [0.0 if row.wer_low is None else max(0.0, row.wer - row.wer_low) for row in rows]
    above = [0.0 if row.wer_high is None else max(0.0, row.wer_high - row.wer) for row in rows]
    axes.errorbar(
        [beside(row.nonzero, aside) for row in rows],
        wers,
        yerr=[below, above],
        label=label,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=6,
        linewidth=1.8,
        capsize=3,
        elinewidth=1.0,
    )


def beside(nonzero: int, aside: float) -> float:
    """Where a model of this size is drawn, ``aside`` steps to the right of its own place."""
    return float(nonzero * _SIDE_BY_SIDE**aside)


def _annotate(axes: Any, rows: Sequence[ResultRow]) -> None:
    """Writes the requested size beside each model of the first curve."""
    for row in rows:
        axes.annotate(
            row.size,
            (row.nonzero, row.wer),
            textcoords="offset points",
            xytext=(6, 6),
            fontsize=8,
            color="#555555",
        )


def format_count(count: float) -> str:
    """A count in short form: ``950``, ``85.2k``, ``3.30M``."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= scale:
            scaled = count / scale
            decimals = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{decimals}f}{suffix}"
    return f"{count:.0f}"
