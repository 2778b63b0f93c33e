"""Several comparisons of the same rows at different budgets: one table, and WER against budget.

    omnisparse compare runs/study-s0-* --sizes 50%,25% --out compared/1x
    omnisparse compare runs/study-2x-* --sizes 50%,25% --out compared/2x
    python tools/plot_budgets.py compared/1x compared/2x --out convergence.png

Reads ``compare.json`` of each folder. Draws a panel per size, a curve per row, and 95 % intervals;
the budget is what one model of a row costs, or all sizes where one training gives them all. Prints
the table in Markdown: rows and budgets down, sizes across.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from omnisparse.comparison.budgets import MEASURES
from omnisparse.comparison.rows import ROWS
from omnisparse.errors import OmnisparseError
from omnisparse.evaluation.pareto import (
    COLOURS,
    MARKERS,
    format_count,
    new_figure,
    save_figure,
    style_axes,
)

_MARKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100)
"""Rates in percent that a log axis names."""


def read_cells(folders: list[Path], measure: str) -> list[dict[str, Any]]:
    """The cells of all comparisons, each with its ``budget`` and the ``folder`` that it is from.

    Raises:
        OmnisparseError: If a folder has no comparison, or a comparison has several test sets.
    """
    cells = []
    for folder in folders:
        path = folder / "compare.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OmnisparseError(f"{path}: {error}") from error
        if len({cell["test"] for cell in document["rows"]}) != 1:
            raise OmnisparseError(f"{path} has several test sets; compare with one --manifest")
        budgets = {item["row"]: item[measure] for item in document["budgets"]}
        cells += [
            {**cell, "budget": budgets[cell["row"]], "folder": folder.name}
            for cell in document["rows"]
            if budgets[cell["row"]]
        ]
    if not cells:
        raise OmnisparseError(f"no row of {', '.join(map(str, folders))} has a budget of {measure}")
    return cells


def table(cells: list[dict[str, Any]], measure: str) -> str:
    """Markdown: a line for each row and budget, WER and interval at each size."""
    sizes = list(dict.fromkeys(cell["size"] for cell in cells))
    lines = [
        f"| row | comparison | {measure} | " + " | ".join(sizes) + " |",
        "|---|---|---:|" + "---|" * len(sizes),
    ]
    for row in _rows(cells):
        for folder in dict.fromkeys(cell["folder"] for cell in cells):
            found = {c["size"]: c for c in cells if c["row"] == row and c["folder"] == folder}
            if found:
                budget = format_count(next(iter(found.values()))["budget"])
                texts = " | ".join(_text(found.get(size)) for size in sizes)
                lines.append(f"| {ROWS.get(row, row)} | {folder} | {budget} | {texts} |")
    return "\n".join(lines)


def plot(cells: list[dict[str, Any]], measure: str, path: Path, *, log_rates: bool) -> None:
    """A panel per size: WER and its interval against the budget, a curve per row."""
    sizes = list(dict.fromkeys(cell["size"] for cell in cells))
    figure = new_figure(3.9 * len(sizes), 4.0)
    highest = max(cell["wer_high"] or cell["wer"] for cell in cells)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for number, row in enumerate(_rows(cells)):
            chosen = [cell for cell in cells if cell["row"] == row and cell["size"] == size]
            chosen.sort(key=lambda cell: cell["budget"])
            if not chosen:
                continue
            axes.errorbar(
                [cell["budget"] * 1.02**number for cell in chosen],
                [cell["wer"] for cell in chosen],
                yerr=[*zip(*map(_bar, chosen), strict=True)],
                label=ROWS.get(row, row), color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)], markersize=5, linewidth=1.6, capsize=3,
                elinewidth=0.8,
            )  # fmt: skip
        axes.set_xscale("log")
        ticks = _ticks(cell["budget"] for cell in cells)
        axes.set_xticks(ticks, [format_count(tick) for tick in ticks])
        axes.set_ylim(0, min(105.0, 1.05 * highest))
        if log_rates:
            lowest = min(cell["wer_low"] or cell["wer"] for cell in cells)
            axes.set_yscale("log")
            marks = [mark for mark in _MARKS if lowest <= mark <= highest]
            axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
            axes.set_ylim(lowest / 1.1, 1.1 * highest)
        axes.minorticks_off()
        axes.set_title(size, loc="left", fontweight="bold", fontsize=10)
        axes.set_xlabel(f"{MEASURES[measure]} of one budget (log scale)", fontsize=8)
        style_axes(axes)
    figure.axes[0].set_ylabel("word error rate, %")
    drawn = {}  # a row may be missing in a panel
    for axes in figure.axes:
        drawn.update(dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    figure.legend(
        drawn.values(), drawn, loc="outside upper left", ncols=len(drawn), frameon=False, fontsize=8
    )
    save_figure(figure, path)


def _ticks(budgets: Iterable[float]) -> list[float]:
    """Budgets in order, without those that are nearly the one before."""
    ticks: list[float] = []
    for budget in sorted(budgets):
        if not ticks or budget > 1.1 * ticks[-1]:
            ticks.append(budget)
    return ticks


def _rows(cells: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(cell["row"] for cell in cells))


def _bar(cell: dict[str, Any]) -> tuple[float, float]:
    """Lengths of an interval below and above its point; 0 where there is none."""
    if cell["wer_low"] is None:
        return 0.0, 0.0
    return max(0.0, cell["wer"] - cell["wer_low"]), max(0.0, cell["wer_high"] - cell["wer"])


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["wer_low"] is None:
        return f"{cell['wer']:.2f}"
    return f"{cell['wer']:.2f} ({cell['wer_low']:.1f} - {cell['wer_high']:.1f})"


@click.command(help="Table and plot of WER against budget, from the folders of comparisons.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The image.")
@click.option("--log-rates", is_flag=True, help="A log scale for error rates, too.")
@click.option("--measure", type=click.Choice(list(MEASURES)), default="passes", show_default=True)
def main(folders: tuple[Path, ...], out: Path, log_rates: bool, measure: str) -> None:
    """The command."""
    try:
        cells = read_cells(list(folders), measure)
    except OmnisparseError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    if log_rates and min(cell["wer_low"] or cell["wer"] for cell in cells) <= 0:
        click.echo("error: --log-rates: a word error rate is 0; leave it out", err=True)
        sys.exit(2)
    plot(cells, measure, out, log_rates=log_rates)
    click.echo(table(cells, measure))


if __name__ == "__main__":
    main()
