"""The comparison as a picture: WER against size, what each row cost, and a paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnisparse.evaluation.compare import (
    COLOURS,
    draw_curve,
    format_count,
    new_figure,
    save_figure,
    style_axes,
    style_size_axes,
)
from omnisparse.evaluation.method_table import ROWS, Cell, RowCost
from omnisparse.evaluation.reference import Reference
from omnisparse.sparsity.budget import parse_size

_NUMBERS = {row: number for number, row in enumerate(ROWS)}
_TITLE = {"loc": "left", "fontweight": "bold", "fontsize": 10}


@dataclass(frozen=True, slots=True)
class _Point:
    """A published result; papers give no interval."""

    nonzero: int
    wer: float

    @property
    def wer_low(self) -> float:
        return self.wer

    @property
    def wer_high(self) -> float:
        return self.wer


def plot_comparison(
    cells: Sequence[Cell],
    costs: Sequence[RowCost],
    path: Path,
    *,
    title: str,
    reference: Reference | None = None,
) -> None:
    """Draws one test set: WER against size with intervals, and the cumulative cost of each row.

    Args:
        cells: The cells of one test set.
        costs: The cost of every row.
        path: The image to write; its suffix is the format.
        title: Printed above the first panel.
        reference: A paper whose tables get panels of their own.

    Raises:
        ValueError: If there is no cell.
    """
    if not cells:
        raise ValueError("cells: expected at least one model to plot, got none")
    if reference is None:
        figure = new_figure(12.0, 5.0)
        panels = figure.subplot_mosaic([["ours", "ours", "cost"]])
    else:
        figure = new_figure(14.0, 9.0)
        mosaic = [["ours", "ours", "cost"], [3, 2, 4], [1, 1, 1]]
        panels = figure.subplot_mosaic(mosaic, height_ratios=[1.3, 1.2, 0.7])
        _draw_reference(panels, reference)
    _draw_sizes(panels["ours"], cells, title)
    _draw_costs(panels["cost"], costs)
    save_figure(figure, path)


def _draw_sizes(axes: Any, rows: Sequence[Cell], title: str) -> None:
    for row in [row for row in ROWS if any(cell.row == row for cell in rows)]:
        chosen = sorted((cell for cell in rows if cell.row == row), key=lambda c: c.nonzero)
        draw_curve(axes, chosen, _NUMBERS[row], ROWS[row])
    style_size_axes(axes, rows)
    axes.set_title(title, **_TITLE)
    axes.legend(frameon=False, fontsize=8)


def _draw_costs(axes: Any, costs: Sequence[RowCost]) -> None:
    """Bars of utterance passes, the part of teachers and initialisations lighter."""
    shown = list(reversed(costs))
    for place, cost in enumerate(shown):
        colour = COLOURS[_NUMBERS[cost.row] % len(COLOURS)]
        own = cost.utterance_passes - cost.teacher_utterance_passes
        axes.barh(place, own, color=colour)
        axes.barh(place, cost.teacher_utterance_passes, left=own, color=colour, alpha=0.4)
        plural = "" if cost.trainings == 1 else "s"
        text = f" {format_count(cost.utterance_passes)}, {cost.trainings} training{plural}"
        axes.text(cost.utterance_passes, place, text, va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [ROWS[cost.row] for cost in shown], fontsize=8)
    highest = max((cost.utterance_passes for cost in costs), default=0.0)
    axes.set_xlim(0, 1.6 * highest or 1.0)
    axes.set_xticks([0, highest] if highest else [0])
    axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
    axes.set_xlabel("utterance passes (light: teachers, initialisations)", fontsize=8)
    axes.set_title("Training cost of the row, all sizes", **_TITLE)
    style_axes(axes)


def _draw_reference(panels: Any, reference: Reference) -> None:
    """Tables 1 to 4 of the paper."""
    tables = reference.tables
    points: list[_Point] = []
    for row, *rates in tables[3].rows:
        found = [
            _Point(int(parse_size(size).value), rate)
            for size, rate in zip(tables[3].columns[1:], rates, strict=True)
            if rate is not None
        ]
        draw_curve(panels[3], found, _NUMBERS[row], ROWS[row])
        points += found
    style_size_axes(panels[3], points)
    panels[3].legend(frameon=False, fontsize=7)
    _scatter(panels[2], [(row[-2], row[-1], "/".join(_text(c) for c in row[:3])) for row in
                         tables[2].rows])  # fmt: skip
    _scatter(panels[4], [(row[-2], row[-1], row[1]) for row in tables[4].rows])
    names = [row[0] for row in tables[1].rows]
    rates = [row[1] for row in tables[1].rows]
    panels[1].barh(range(len(names)), rates, color=COLOURS[_NUMBERS["distilled"]], height=0.6)
    for place, rate in enumerate(rates):
        panels[1].text(rate, place, f" {rate:.1f}", va="center", fontsize=8)
    panels[1].set_yticks(range(len(names)), names, fontsize=8)
    panels[1].invert_yaxis()
    panels[1].set_xlabel("word error rate, %")
    style_axes(panels[1])
    for number in (1, 2, 3, 4):
        title = f"{reference.title}: table {number}"
        panels[number].set_title(title, loc="left", fontweight="bold", fontsize=8)


def _text(cell: Any) -> str:
    return "-" if cell is None else str(cell)


def _scatter(axes: Any, rows: Sequence[tuple[str, float, str]]) -> None:
    """Single results with a word beside each; equal results share theirs."""
    words: dict[_Point, str] = {}
    for size, rate, word in rows:
        point = _Point(int(parse_size(size).value), rate)
        words[point] = f"{words[point]}; {word}" if point in words else word
    points = list(words)
    for point, word in words.items():
        above = any(abs(p.nonzero / point.nonzero - 1) < 0.05 and p.wer < point.wer for p in points)
        axes.plot(point.nonzero, point.wer, "o", color=COLOURS[0], markersize=4)
        axes.annotate(
            word, (point.nonzero, point.wer), textcoords="offset points",
            xytext=(5, 2 if above else -7), fontsize=6.5, color="#555555",
        )  # fmt: skip
    style_size_axes(axes, points)
    low, high = min(p.wer for p in points), max(p.wer for p in points)
    axes.set_ylim(low - 0.5, high + 0.5)
    axes.set_xlim(min(p.nonzero for p in points) / 1.2, max(p.nonzero for p in points) * 1.9)
