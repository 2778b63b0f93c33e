"""What one budget of each row is, in three measures, and which of them are equal.

Equal utterance passes are neither equal updates nor equal operations: a pass of a small subnet
computes as much as one of the dense net, its weights of zero included, a supernet makes fewer
updates for the same passes, and a fixed teacher's forward passes are operations, not passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from omnisparse.comparison.plan import Model
from omnisparse.comparison.rows import ROWS_OF_PARTS, TableRows
from omnisparse.evaluation.pareto import format_count
from omnisparse.runs.record import Training, total_cost

Measure = Literal["passes", "updates", "flops"]

MEASURES: dict[Measure, str] = {
    "passes": "utterance passes",
    "updates": "optimizer updates",
    "flops": "floating-point operations",
}
"""The three measures of a budget, with their displayed names."""

EQUAL = 0.03
"""Budgets that differ by at most this share are equal; steps are whole numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBudget:
    """What a user pays for one model of a row; for all sizes, if one training gives them all.

    The mean over seeds and sizes, without teachers and initialisations, which other rows share.
    """

    row: str
    passes: float
    """Utterance passes; an utterance that a teacher decodes is one."""
    updates: float
    """Steps of the optimizer."""
    flops: float | None
    """Floating-point operations, weights of zero included; None where they were not counted."""
    device_seconds: float

    def share(self, other: RowBudget, measure: Measure) -> float | None:
        """This budget relative to another; None where one of them is not known or 0."""
        own, theirs = getattr(self, measure), getattr(other, measure)
        return None if own is None or not theirs else float(own / theirs)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def budgets_of_rows(models: Sequence[Model], rows: TableRows) -> list[RowBudget]:
    """The budget of each row, in the order of the table."""
    found = []
    for row in rows.those_of(model.candidate.row for model in models):
        records = [model.candidate.record for model in models if model.candidate.row == row]
        own: set[Training] = {record.training for record in records}
        budgets = len(own)
        if row in ROWS_OF_PARTS:
            own |= {source for record in records for source in record.sources}
            budgets = len({record.seed for record in records})
        total = total_cost(own)
        flops = total["flops"]
        found.append(
            RowBudget(
                row=row,
                passes=total["utterance_passes"] / budgets,
                updates=total["optimizer_steps"] / budgets,
                flops=None if flops is None else flops / budgets,
                device_seconds=total["device_seconds"] / budgets,
            )
        )
    return found


def reference_of(budgets: Sequence[RowBudget], rows: TableRows) -> RowBudget:
    """The budget that others are compared with: that of the rival row, else of the first."""
    return next((budget for budget in budgets if budget.row == rows.rival), budgets[0])


def with_unequal_marked(
    rows: TableRows, budgets: Sequence[RowBudget], measure: Measure | None
) -> TableRows:
    """The rows with labels that say where a budget is not equal in a measure.

    Args:
        rows: The rows of the table.
        budgets: Their budgets.
        measure: What should be equal; None marks no row.
    """
    if measure is None or not budgets:
        return rows
    reference = reference_of(budgets, rows)
    unit = "FLOPs" if measure == "flops" else measure
    labels = dict(rows.labels)
    for budget in budgets:
        share = budget.share(reference, measure)
        if share is None:
            labels[budget.row] += f" [{unit} not counted]"
        elif abs(share - 1) > EQUAL:
            labels[budget.row] += f" [{share:.2f}x {unit}]"
    return replace(rows, labels=labels)


def budget_notes(
    rows: TableRows, budgets: Sequence[RowBudget], measure: Measure | None
) -> list[str]:
    """Which measures of the budgets are equal, and the rows for which the others are not.

    Args:
        rows: The rows of the table.
        budgets: Their budgets.
        measure: What should be equal; None names all three.
    """
    if len(budgets) < 2:
        return []
    reference = reference_of(budgets, rows)
    notes = []
    for name in get_args(Measure) if measure is None else (measure,):
        shares = [(budget, budget.share(reference, name)) for budget in budgets]
        unknown = [rows.spoken(budget.row) for budget, share in shares if share is None]
        other = [
            f"{rows.spoken(budget.row)} {share:.2f}x"
            for budget, share in shares
            if share is not None and abs(share - 1) > EQUAL
        ]
        if unknown:
            notes.append(f"{MEASURES[name]}: not counted for {', '.join(unknown)}")
        elif other:
            of = rows.spoken(reference.row)
            notes.append(f"{MEASURES[name]}: not equal; relative to {of}: {', '.join(other)}")
        else:
            notes.append(f"{MEASURES[name]}: equal (within {EQUAL:.0%})")
    return notes


def budget_table(
    rows: TableRows, budgets: Sequence[RowBudget]
) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the table of budgets, as text.

    Args:
        rows: The rows of the table.
        budgets: Their budgets.
    """
    reference = reference_of(budgets, rows)
    lines = []
    for budget in budgets:
        line = [rows.labels[budget.row]]
        for measure in get_args(Measure):
            value, share = getattr(budget, measure), budget.share(reference, measure)
            beside = "" if share is None or budget is reference else f" ({share:.2f}x)"
            line.append("-" if value is None else f"{_text(value, measure)}{beside}")
        lines.append([*line, f"{budget.device_seconds:,.0f}"])
    return ["one budget", *(MEASURES[name] for name in get_args(Measure)), "device s"], lines


def _text(value: float, measure: Measure) -> str:
    return f"{value:.3g}" if measure == "flops" else format_count(value)
