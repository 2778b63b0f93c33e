"""Output of a comparison: files, the table on the screen, and a W&B run if W&B is on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from omnisparse.atomic import replaced_file
from omnisparse.comparison.breaking import BreakingPoint, breaking_points, in_words, plot_breaking
from omnisparse.comparison.budgets import (
    Measure,
    RowBudget,
    budget_notes,
    with_unequal_marked,
)
from omnisparse.comparison.markdown import (
    certainty_notes,
    difference_table,
    p_text,
    relative_text,
    to_markdown,
    wer_table,
)
from omnisparse.comparison.plot import plot_comparison
from omnisparse.comparison.reference import load_reference
from omnisparse.comparison.rows import TableRows
from omnisparse.comparison.table import (
    Cell,
    MeanDifference,
    Measurement,
    RowCost,
    make_cells,
    mean_differences,
)
from omnisparse.console import Console, format_difference
from omnisparse.evaluation.pareto import write_records
from omnisparse.training.tracking import TrackingConfig, log_comparison

NAME = "compare"


def write_comparison(
    out: Path,
    measurements: Sequence[Measurement],
    costs: Sequence[RowCost],
    *,
    rows: TableRows,
    reference: str | None,
    wandb: Literal["auto", "online", "offline", "off"],
    console: Console,
    budgets: Sequence[RowBudget] = (),
    budget: Measure | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write and show the tables.

    Args:
        out: Folder for ``compare.md``, ``compare.csv`` (cells), ``compare_models.csv`` (each
            seed), ``compare.json``, ``compare.png`` (several test sets: ``compare-<name>.png``),
            ``compare_breaking.png`` where a row that compresses in stages has several sizes.
        measurements: What was measured.
        costs: The cost of every row.
        rows: The rows of the table.
        reference: A paper whose results are shown beside ours; None for none.
        wandb: Whether W&B gets table and plot.
        console: The terminal.
        budgets: The budget of every row.
        budget: What should be equal: rows that are not are marked. None marks none, and names all
            three measures.
        notes: What the reader must know of the models, a line each.

    Returns:
        ``rows`` (cells), ``models`` (every seed), ``costs`` (totals of rows), ``means``
        (differences of rows from the rival row, over all sizes), ``budgets`` (one budget of each
        row), ``breaking_points``, ``notes``, ``files``.

    Raises:
        ValueError: If the models of a test set were not measured on the same utterances.
    """
    cells, means = make_cells(measurements, rows), mean_differences(measurements, rows)
    paper = None if reference is None else load_reference(reference)
    out.mkdir(parents=True, exist_ok=True)
    by_test = {
        test: [cell for cell in cells if cell.test == test]
        for test in dict.fromkeys(cell.test for cell in cells)
    }
    plots: list[Path] = []
    points: list[BreakingPoint] = []
    for test, chosen in by_test.items():
        path = out / (f"{NAME}.png" if len(by_test) == 1 else f"{NAME}-{test}.png")
        plot_comparison(chosen, costs, path, test=test, rows=rows, reference=paper)
        plots.append(path)
        if found := breaking_points(chosen):
            points += found
            path = path.with_stem(path.stem.replace(NAME, f"{NAME}_breaking", 1))
            plot_breaking(chosen, path, test=test)
            plots.append(path)
    document: dict[str, Any] = {
        "rows": [cell.to_dict() for cell in cells],
        "models": [item.to_dict() for item in measurements],
        "costs": [cost.to_dict() for cost in costs],
        "means": [mean.to_dict() for mean in means],
        "budgets": [item.to_dict() for item in budgets],
        "breaking_points": [point.to_dict() for point in points],
        "notes": list(notes),
    }
    write_records([_flat(row) for row in document["rows"]], out / f"{NAME}.csv")
    write_records(document["models"], out / f"{NAME}_models.csv")
    text = to_markdown(
        cells, costs, rows=rows, means=means, reference=paper, budgets=budgets, budget=budget
    )
    lines = [*notes, *map(in_words, points)]
    told = "".join(f"- {line}\n" for line in lines) + "\n" * bool(lines)
    _write(out / f"{NAME}.md", f"# Comparison\n\n{told}{text}")
    _write(out / f"{NAME}.json", json.dumps(document, indent=1) + "\n")
    marked = with_unequal_marked(rows, budgets, budget)
    for test, chosen in by_test.items():
        _show(console, test, chosen, [mean for mean in means if mean.test == test], costs, marked)
    for line in budget_notes(rows, budgets, budget):
        console.note(line)
    for point in points:
        console.note(in_words(point))
    if rows.note:
        console.note(rows.note)
    log_comparison(
        TrackingConfig(wandb=wandb),
        name=out.resolve().name,
        folder=out,
        table=[_flat(row) for row in document["rows"]],
        images=plots,
    )
    files = [out / f"{NAME}.md", out / f"{NAME}.csv", out / f"{NAME}_models.csv", *plots]
    console.note(f"written to {out}: {', '.join(file.name for file in files)}")
    return {**document, "files": [str(file) for file in files]}


def _write(path: Path, text: str) -> None:
    with replaced_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its lists as text, for tables with plain cells."""
    return {
        key: " ".join(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in row.items()
    }


def _show(
    console: Console,
    test: str,
    cells: Sequence[Cell],
    means: Sequence[MeanDifference],
    costs: Sequence[RowCost],
    rows: TableRows,
) -> None:
    """Show the table of one test set and its differences on the screen."""
    if rows.picture == "differences":
        table = difference_table(cells, costs, rows, means)
        console.table(*table, title=test, drop=[table[0][-1]])
        for line in certainty_notes(cells):
            console.note(line)
        return
    columns, lines = wer_table(cells, costs, rows)
    if not console.fits(columns, lines):  # the files and the lines below have the intervals
        columns, lines = wer_table(cells, costs, rows, with_intervals=False)
        columns = ["passes" if name == "utterance passes" else name for name in columns]
    console.table(columns, lines, title=f"{test}, WER in %", drop=["device s", "trainings"])
    for line in (*_verdicts(cells, means, rows), *certainty_notes(cells)):
        console.note(line)


def _verdicts(cells: Sequence[Cell], means: Sequence[MeanDifference], rows: TableRows) -> list[str]:
    """The differences between rows and their rival, in words."""
    rival = rows.spoken(rows.rival)
    lines = [
        f"{cell.size}: {rows.spoken(cell.row)} minus {rival} {cell.difference:+.2f} points "
        f"({format_difference(cell.difference_low, cell.difference_high)}), "
        f"p = {p_text(cell.p_value)}, "
        f"relative {relative_text(cell.relative)}"
        for cell in cells
        if cell.difference is not None
    ]
    return lines + [
        f"mean over {', '.join(mean.sizes)}: {rows.spoken(mean.row)} minus {rival} "
        f"{relative_text(mean.relative)} relative "
        f"({format_difference(mean.relative_low, mean.relative_high, decimals=1)}), "
        f"p = {p_text(mean.p_value)}"
        for mean in means
    ]
