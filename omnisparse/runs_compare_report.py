"""What a comparison leaves: files, the table on the screen, and a W&B run where that is on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from omnisparse.artifact.atomic import replaced_file
from omnisparse.cli_output import Console
from omnisparse.evaluation.compare import write_records
from omnisparse.evaluation.method_plot import plot_comparison
from omnisparse.evaluation.method_table import (
    ROWS,
    Cell,
    Measurement,
    RowCost,
    make_cells,
    to_markdown,
    wer_table,
)
from omnisparse.evaluation.reference import load_reference
from omnisparse.training.tracking import TrackingConfig, log_comparison

NAME = "compare"


def write_comparison(
    out: Path,
    measurements: Sequence[Measurement],
    costs: Sequence[RowCost],
    *,
    reference: str | None,
    wandb: Literal["auto", "online", "offline", "off"],
    console: Console,
) -> dict[str, Any]:
    """Write and show the tables.

    Args:
        out: Folder for ``compare.md``, ``compare.csv`` (cells), ``compare_models.csv`` (each
            seed), ``compare.json``, ``compare.png`` (several test sets: ``compare-<name>.png``).
        measurements: What was measured.
        costs: The cost of every row.
        reference: A paper whose figures stand beside ours; None for none.
        wandb: Whether W&B gets table and plot.
        console: Where people read it.

    Returns:
        ``rows`` (cells), ``models`` (every seed), ``costs`` (rows' totals), ``files``.

    Raises:
        ValueError: If the models of a test set were not measured on the same utterances.
    """
    cells = make_cells(measurements)
    paper = None if reference is None else load_reference(reference)
    out.mkdir(parents=True, exist_ok=True)
    by_test = {
        test: [cell for cell in cells if cell.test == test]
        for test in dict.fromkeys(cell.test for cell in cells)
    }
    plots = []
    for test, chosen in by_test.items():
        path = out / (f"{NAME}.png" if len(by_test) == 1 else f"{NAME}-{test}.png")
        plot_comparison(chosen, costs, path, title=f"WER against size, {test}", reference=paper)
        plots.append(path)
    document = {
        "rows": [cell.to_dict() for cell in cells],
        "models": [item.to_dict() for item in measurements],
        "costs": [cost.to_dict() for cost in costs],
    }
    write_records([_flat(row) for row in document["rows"]], out / f"{NAME}.csv")
    write_records(document["models"], out / f"{NAME}_models.csv")
    _write(out / f"{NAME}.md", f"# Comparison\n\n{to_markdown(cells, costs, reference=paper)}")
    _write(out / f"{NAME}.json", json.dumps(document, indent=1) + "\n")
    for test, chosen in by_test.items():
        columns, lines = wer_table(chosen, costs)
        console.table(columns, lines, title=test)
        for line in _verdicts(chosen):
            console.note(line)
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
    """A row whose lists are text, for tables of plain cells."""
    return {
        key: " ".join(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in row.items()
    }


def _verdicts(cells: Sequence[Cell]) -> list[str]:
    """What the paired bootstrap says about supernet and gradual pruning, in words."""
    return [
        f"{cell.size}: {ROWS[cell.row].lower()} minus sparsity (S) {cell.difference:+.2f} points "
        f"({cell.difference_low:+.2f} to {cell.difference_high:+.2f}), p = {cell.p_value:.3f}"
        for cell in cells
        if cell.difference is not None
    ]
