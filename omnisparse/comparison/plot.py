"""Plots of a comparison: WER against size, or differences; costs; a paper's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnisparse.comparison.reference import Reference
from omnisparse.comparison.rows import METHODS, ROWS, TableRows
from omnisparse.comparison.table import Cell, RowCost, sizes_of
from omnisparse.evaluation.confidence import SIGNIFICANT
from omnisparse.evaluation.pareto import (
    COLOURS,
    beside,
    draw_curve,
    format_count,
    new_figure,
    save_figure,
    style_axes,
    style_size_axes,
)
from omnisparse.sparsity.sizes import parse_size

_TITLE = {"loc": "left", "fontweight": "bold", "fontsize": 10}


@dataclass(frozen=True, slots=True)
class _Point:
    """A published result; it has no interval."""

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
    test: str,
    rows: TableRows = METHODS,
    reference: Reference | None = None,
) -> None:
    """Draws one test set, WER against size or differences, and the cumulative cost of each row.

    Args:
        cells: The cells of one test set.
        costs: The cost of every row.
        path: The image to write; its suffix is the format.
        test: Name of the test set.
        rows: The rows of the table, and the kind of plot. If no two rows have a size in common,
            there is no difference to draw, and WER against size is drawn.
        reference: A paper whose tables get their own panels (only with WER against size).

    Raises:
        ValueError: If there is no cell.
    """
    if not cells:
        raise ValueError("cells: expected at least one model to plot, got none")
    if rows.picture == "differences" and any(cell.difference is not None for cell in cells):
        _plot_differences(cells, costs, path, test, rows)
        return
    if reference is None:
        figure = new_figure(12.0, 5.0)
        panels = figure.subplot_mosaic([["ours", "ours", "cost"]])
    else:
        figure = new_figure(14.0, 9.0)
        mosaic = [["ours", "ours", "cost"], [3, 2, 4], [1, 1, 1]]
        panels = figure.subplot_mosaic(mosaic, height_ratios=[1.3, 1.2, 0.7])
        _draw_reference(panels, reference)
    _draw_sizes(panels["ours"], cells, f"WER against size, {test}", rows)
    _draw_costs(panels["cost"], costs, rows)
    save_figure(figure, path)


def _draw_sizes(axes: Any, cells: Sequence[Cell], title: str, rows: TableRows) -> None:
    shown = rows.those_of(cell.row for cell in cells)
    for place, row in enumerate(shown):
        chosen = sorted((cell for cell in cells if cell.row == row), key=lambda c: c.nonzero)
        aside = place - (len(shown) - 1) / 2
        number = rows.number(row)
        draw_curve(axes, chosen, number, _literal(rows.labels[row]), aside=aside)
        for cell in chosen:
            if cell.significant:
                _mark(axes, cell, COLOURS[number % len(COLOURS)], aside)
    style_size_axes(axes, cells)
    axes.set_title(title, **_TITLE)
    compared = any(cell.significant for cell in cells)
    note = f"*  differs from {rows.spoken(rows.rival)} of the same size, p < {SIGNIFICANT}"
    axes.legend(
        frameon=False, fontsize=8, title=note if compared else None, title_fontsize=8,
        alignment="left",
    )  # fmt: skip


def _mark(axes: Any, cell: Cell, colour: str, aside: float) -> None:
    """A star above the interval of a cell that differs from the rival's."""
    top = cell.wer if cell.wer_high is None else cell.wer_high
    axes.annotate(
        "*", (beside(cell.nonzero, aside), top), textcoords="offset points",
        xytext=(0, -1), ha="center", fontsize=13, fontweight="bold", color=colour,
        annotation_clip=True,
    )  # fmt: skip


def _literal(label: str) -> str:
    """A label with escaped dollar signs, which matplotlib would read as formulae."""
    return label.replace("$", r"\$")


def _plot_differences(
    cells: Sequence[Cell], costs: Sequence[RowCost], path: Path, test: str, rows: TableRows
) -> None:
    """A panel per size with every row's difference from the rival; then a panel of costs."""
    sizes = sizes_of(cell for cell in cells if cell.difference is not None)
    shown = rows.those_of(cell.row for cell in cells)
    widest = 0.07 * max(len(rows.labels[row]) for row in shown)
    figure = new_figure(widest + 2.4 * (len(sizes) + 1), 1.6 + 0.26 * len(shown))
    panels = figure.subplots(1, len(sizes) + 1, sharey=True, squeeze=False)[0]
    filled = f" (filled: p < {SIGNIFICANT})" if any(cell.significant for cell in cells) else ""
    figure.suptitle(
        f"WER minus {rows.spoken(rows.rival)}, points, {test}{filled}",
        x=0.01, ha="left", fontsize=10, fontweight="bold",
    )  # fmt: skip
    for axes, size in zip(panels, sizes, strict=False):
        _draw_differences(axes, [cell for cell in cells if cell.size == size], shown, rows)
    by_row = {cost.row: cost for cost in costs}
    _draw_costs(panels[-1], [by_row[row] for row in shown], rows, one_colour=True)
    panels[-1].set_ylim(-0.7, len(shown) - 0.3)
    panels[-1].set_xlabel("utterance passes", fontsize=8)
    panels[-1].set_title("Training cost", **_TITLE)
    save_figure(figure, path)


def _draw_differences(
    axes: Any, cells: Sequence[Cell], shown: Sequence[str], rows: TableRows
) -> None:
    """Dots with intervals, the first row at the top; dots left of the line beat the rival."""
    places = {row: place for place, row in enumerate(reversed(shown))}
    axes.axvline(0.0, color="#787774", linewidth=1.0)
    for cell in cells:
        if cell.row == rows.rival:
            axes.plot(0.0, places[cell.row], "|", color="#787774", markersize=8)
            axes.set_title(f"{cell.size}, {rows.spoken(cell.row)} {cell.wer:.2f} %", **_TITLE)
        if cell.difference is None or cell.difference_low is None or cell.difference_high is None:
            continue
        clear = bool(cell.significant)
        colour = COLOURS[(0 if cell.difference < 0 else 1) if clear else 5]
        axes.plot(
            [cell.difference_low, cell.difference_high], [places[cell.row]] * 2, color=colour,
            linewidth=1.4,
        )  # fmt: skip
        axes.plot(
            cell.difference, places[cell.row], "o", color=colour, markersize=5,
            markerfacecolor=colour if clear else "white",
        )  # fmt: skip
    axes.tick_params(labelsize=8)
    style_axes(axes)


def _draw_costs(
    axes: Any, costs: Sequence[RowCost], rows: TableRows, *, one_colour: bool = False
) -> None:
    """Bars of utterance passes; the part of teachers and initialisations is lighter."""
    shown = list(reversed(costs))
    for place, cost in enumerate(shown):
        colour = COLOURS[0 if one_colour else rows.number(cost.row) % len(COLOURS)]
        own = cost.utterance_passes - cost.teacher_utterance_passes
        axes.barh(place, own, color=colour)
        axes.barh(place, cost.teacher_utterance_passes, left=own, color=colour, alpha=0.4)
        plural = "" if cost.trainings == 1 else "s"
        text = f" {format_count(cost.utterance_passes)}, {cost.trainings} training{plural}"
        axes.text(cost.utterance_passes, place, text, va="center", fontsize=8)
    labels = [_literal(rows.labels[cost.row]) for cost in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
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
        draw_curve(panels[3], found, METHODS.number(row), ROWS[row])
        points += found
    style_size_axes(panels[3], points)
    panels[3].legend(frameon=False, fontsize=7)
    _scatter(panels[2], [(row[-2], row[-1], "/".join(_text(c) for c in row[:3])) for row in
                         tables[2].rows])  # fmt: skip
    _scatter(panels[4], [(row[-2], row[-1], row[1]) for row in tables[4].rows])
    names = [row[0] for row in tables[1].rows]
    rates = [row[1] for row in tables[1].rows]
    panels[1].barh(range(len(names)), rates, color=COLOURS[METHODS.number("distilled")], height=0.6)
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
    """Single results with a label beside each; equal results share one label."""
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
