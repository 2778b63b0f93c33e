"""The tables of a comparison (rows by sizes) in markdown, with those of a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from omnisparse.comparison.budgets import (
    Measure,
    RowBudget,
    budget_notes,
    budget_table,
    with_unequal_marked,
)
from omnisparse.comparison.reference import Reference, ReferenceTable
from omnisparse.comparison.rows import METHODS, ROWS, TableRows
from omnisparse.comparison.table import Cell, MeanDifference, RowCost, sizes_of
from omnisparse.console import format_difference, format_interval
from omnisparse.evaluation.clusters import SPEAKERS_FOR_A_STAR
from omnisparse.evaluation.confidence import SEEDS_FOR_A_STAR, SIGNIFICANT
from omnisparse.evaluation.pareto import format_count

COST_COLUMNS = ("trainings", "utterance passes", "device s")
"""What a row cost."""

_MANY_COMPARISONS = 20
"""Share of comparisons that are expected to show a difference by chance at p < 0.05."""


def to_markdown(
    cells: Sequence[Cell],
    costs: Sequence[RowCost],
    *,
    rows: TableRows = METHODS,
    means: Sequence[MeanDifference] = (),
    reference: Reference | None = None,
    budgets: Sequence[RowBudget] = (),
    budget: Measure | None = None,
) -> str:
    """The tables of all test sets with training costs, and, if requested, those of a paper.

    Args:
        cells: The cells of all test sets.
        costs: The cost of every row.
        rows: The rows of the table.
        means: Differences of rows from the rival row, over all sizes.
        reference: A paper whose tables follow; None for none.
        budgets: The budget of every row.
        budget: What should be equal; None names all three measures.
    """
    rows = with_unequal_marked(rows, budgets, budget)
    parts = [rows.note, ""] if rows.note else []
    for test in dict.fromkeys(cell.test for cell in cells):
        chosen = [cell for cell in cells if cell.test == test]
        parts += [f"## {test}", "", *_table(*wer_table(chosen, costs, rows)), ""]
        parts += [*_size_lines(chosen, rows), "", *_character_lines(chosen, rows), ""]
        parts += _significance_lines(chosen, rows)
        parts += _mean_lines([mean for mean in means if mean.test == test], rows)
        parts += [line for note in certainty_notes(chosen) for line in (note, "")]
    if budgets:
        parts += ["## Budgets", "", *_table(*budget_table(rows, budgets)), ""]
        parts += [line for note in budget_notes(rows, budgets, budget) for line in (f"- {note}",)]
        parts += [""]
    parts += [_footnote(cells, rows), ""]
    if reference is not None:
        parts += [f"## {reference.title}", "", "Other data, other sizes: orderings compare.", ""]
        for table in reference.tables.values():
            parts += [*_reference_lines(table), ""]
    return "\n".join(parts)


def _footnote(cells: Sequence[Cell], rows: TableRows) -> str:
    text = (
        "WER in %, CER (of characters) in %; in brackets the 95 % interval: speakers are left out "
        "in turn, and seeds where there are several (Wilson's where no speaker changes the rate). "
        "Several seeds: their mean. Training cost is that of the whole "
        "row, every training counted once, teachers and initialisations included; a budget is that "
        "of one model of a row, or of all its sizes where one training gives them, without "
        "teachers. An utterance pass is one utterance forward and backward (of a decoded "
        "hypothesis: the decoding of the utterance); operations are those of matrix products, "
        "weights of zero included."
    )
    if any(cell.significant for cell in cells):
        text += (
            f" `*`: differs from {rows.labels[rows.rival]} of the same size, p < {SIGNIFICANT}, "
            f"with {SEEDS_FOR_A_STAR} seeds and {SPEAKERS_FOR_A_STAR} speakers or more."
        )
    compared = sum(cell.p_value is not None for cell in cells)
    if compared >= _MANY_COMPARISONS:
        text += (
            f" Of {compared} comparisons about {SIGNIFICANT * compared:.0f} have p < {SIGNIFICANT} "
            "by chance alone."
        )
    return text


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A markdown table; a bar within a cell (of a regular expression) is escaped."""
    lines = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return [
        f"| {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) - 1)}",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]


def _by_place(cells: Sequence[Cell]) -> dict[tuple[str, str], Cell]:
    return {(cell.row, cell.size): cell for cell in cells}


def wer_table(
    cells: Sequence[Cell],
    costs: Sequence[RowCost],
    rows: TableRows = METHODS,
    *,
    with_intervals: bool = True,
) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the table of one test set, as text.

    Args:
        cells: The cells of one test set.
        costs: The cost of every row.
        rows: The rows of the table.
        with_intervals: Whether each rate is followed by its interval.
    """
    sizes, places = sizes_of(cells), _by_place(cells)
    known = {cost.row: cost for cost in costs}
    lines = []
    for row in rows.those_of(cell.row for cell in cells):
        line = [rows.labels[row]]
        for size in sizes:
            cell = places.get((row, size))
            text = _wer_text if with_intervals else _rate_text
            line.append("-" if cell is None else text(cell))
        cost = known.get(row)
        line += ["-"] * 3 if cost is None else [
            f"{cost.trainings}", format_count(cost.utterance_passes), f"{cost.device_seconds:,.0f}"
        ]  # fmt: skip
        lines.append(line)
    return [rows.heading, *sizes, *COST_COLUMNS], lines


def _wer_text(cell: Cell) -> str:
    interval = format_interval(cell.wer_low, cell.wer_high)
    return f"{cell.wer:.2f} ({interval}){_star(cell.significant)}"


def _rate_text(cell: Cell) -> str:
    return f"{cell.wer:.2f}{_star(cell.significant)}"


def _size_lines(cells: Sequence[Cell], rows: TableRows) -> list[str]:
    sizes, places = sizes_of(cells), _by_place(cells)
    lines = []
    for row in rows.those_of(cell.row for cell in cells):
        found = [places.get((row, size)) for size in sizes]
        texts = ["-" if c is None else f"{c.nonzero:,} / {c.bytes:,}" for c in found]
        seeds = next(len(c.seeds) for c in found if c is not None)
        lines.append([rows.labels[row], *texts, f"{seeds}"])
    return _table(["non-zeros / bytes", *sizes, "seeds"], lines)


def _character_lines(cells: Sequence[Cell], rows: TableRows) -> list[str]:
    sizes, places = sizes_of(cells), _by_place(cells)
    lines = []
    for row in rows.those_of(cell.row for cell in cells):
        found = [places.get((row, size)) for size in sizes]
        texts = [
            "-" if c is None else f"{c.cer:.2f} ({format_interval(c.cer_low, c.cer_high)})"
            for c in found
        ]
        lines.append([rows.labels[row], *texts])
    return _table(["CER in %", *sizes], lines)


def _significance_lines(cells: Sequence[Cell], rows: TableRows) -> list[str]:
    lines = [
        [
            cell.label,
            cell.size,
            f"{cell.difference:+.2f}",
            format_difference(cell.difference_low, cell.difference_high),
            relative_text(cell.relative),
            p_text(cell.p_value),
        ]
        for cell in cells
        if cell.difference is not None
    ]
    if not lines:
        return []
    minus = f"minus {rows.spoken(rows.rival)}"
    columns = [minus, "size", "WER points", "95 % interval", "relative", "p"]
    return [*_table(columns, lines), ""]


def relative_text(relative: float | None) -> str:
    """A relative difference with its sign, or a dash if there is none."""
    return "-" if relative is None else f"{relative:+.1f} %"


def p_text(p_value: float | None) -> str:
    """A p-value, or a dash if there is none."""
    return "-" if p_value is None else f"{p_value:.3f}"


def difference_table(
    cells: Sequence[Cell],
    costs: Sequence[RowCost],
    rows: TableRows,
    means: Sequence[MeanDifference],
) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of a table of one test set, narrow enough for a screen.

    Args:
        cells: The cells of one test set.
        costs: The cost of every row.
        rows: The rows of the table.
        means: Differences of rows from the rival row, over all sizes of the test set. A row without
            a mean shows the relative difference of its one size.
    """
    sizes, places = sizes_of(cells), _by_place(cells)
    passes = {cost.row: format_count(cost.utterance_passes) for cost in costs}
    single = {c.row: relative_text(c.relative) for c in cells if c.relative is not None}
    relative = single | {
        mean.row: f"{relative_text(mean.relative)} "
        f"({format_difference(mean.relative_low, mean.relative_high, decimals=1)})"
        f"{_star(mean.significant)}"
        for mean in means
    }
    lines = []
    for row in rows.those_of(cell.row for cell in cells):
        found = [places.get((row, size)) for size in sizes]
        rates = ["-" if c is None else _rate_text(c) for c in found]
        lines.append([rows.labels[row], *rates, relative.get(row, "-"), passes.get(row, "-")])
    return [rows.heading, *sizes, "mean relative", "passes"], lines


def _star(significant: bool | None) -> str:
    return " *" if significant else ""


def certainty_notes(cells: Sequence[Cell]) -> list[str]:
    """What the intervals of one test set cannot say, and why no difference has a star.

    Args:
        cells: The cells of one test set.
    """
    notes = []
    seeds = min(len(cell.seeds) for cell in cells)
    whose = {1: "Intervals and p are one seed's", 2: "Intervals and p are of two seeds"}.get(seeds)
    if whose is not None:
        where = "" if all(len(cell.seeds) == seeds for cell in cells) else " in some cells"
        notes.append(
            f"{whose}{where}: they compare these trained nets. Whether the methods differ takes "
            f"{SEEDS_FOR_A_STAR} seeds; with fewer there is no star."
        )
    unit, speakers = cells[0].interval, cells[0].speakers
    if speakers < SPEAKERS_FOR_A_STAR:
        named = (
            f"names {speakers} speaker{'' if speakers == 1 else 's'}"
            if speakers
            else "names no speaker"
        )
        over = " Intervals are over utterances." if unit == "utterances" else ""
        notes.append(
            f"The test set {named}; below {SPEAKERS_FOR_A_STAR} no difference gets a star, because "
            f"voices differ too much.{over}"
        )
    return notes


def _mean_lines(means: Sequence[MeanDifference], rows: TableRows) -> list[str]:
    lines = [
        [
            mean.label,
            ", ".join(mean.sizes),
            relative_text(mean.relative),
            format_difference(mean.relative_low, mean.relative_high, decimals=1),
            p_text(mean.p_value),
        ]
        for mean in means
    ]
    if not lines:
        return []
    minus = f"minus {rows.spoken(rows.rival)}"
    columns = [minus, "mean over sizes", "relative", "95 % interval", "p"]
    return [*_table(columns, lines), ""]


def _reference_lines(table: ReferenceTable) -> list[str]:
    rows = [
        ["-" if cell is None else ROWS.get(str(cell), str(cell)) for cell in row]
        for row in table.rows
    ]
    return [f"Table {table.number}: {table.title}", "", *_table(table.columns, rows)]
