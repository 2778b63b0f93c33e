"""Methods against sizes: the view of Pang et al. 2018, table 3, with intervals and costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omnisparse.evaluation.account import TrainingAccount
from omnisparse.evaluation.compare import format_count
from omnisparse.evaluation.reference import Reference, ReferenceTable
from omnisparse.evaluation.wer import (
    ErrorCounts,
    PairedDifference,
    bootstrap_interval,
    corpus_wer,
    paired_bootstrap,
)

ROWS = {
    "base": "Base",
    "factored": "Factorization (F)",
    "distilled": "Distillation (D)",
    "pruned": "Sparsity (S)",
    "factored_distilled": "F + D",
    "factored_distilled_pruned": "F + D + S",
    "supernet": "Supernet",
    "supernet_double": "Supernet, twice the budget",
}
"""Rows of the table in their order, and what people call them."""

SUPERNET, RIVAL = "supernet", "pruned"
SUPERNETS = (SUPERNET, "supernet_double")
"""Rows whose models of all sizes come from one training."""
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One model of one run on one test set."""

    row: str
    """One of ``ROWS``."""
    size: str
    """Column: the size asked for."""
    test: str
    """Name of the test set."""
    run: str
    parameters: int
    """Parameters of the dense net."""
    nonzero: int
    bytes: int
    counts: tuple[ErrorCounts, ...]
    """Word errors of every utterance of the test set, in its order."""
    account: TrainingAccount

    def to_dict(self) -> dict[str, Any]:
        """The figures on one level, ready for JSON and CSV."""
        low, high = bootstrap_interval(self.counts)
        return {
            "row": self.row,
            "size": self.size,
            "test": self.test,
            "run": self.run,
            "parameters": self.parameters,
            "nonzero": self.nonzero,
            "bytes": self.bytes,
            "wer": corpus_wer(self.counts),
            "wer_low": low,
            "wer_high": high,
            **self.account.to_dict(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A method at a size on a test set, over all seeds; rates in percent."""

    row: str
    size: str
    test: str
    nonzero: int
    """Most non-zeros of any seed's model."""
    bytes: int
    """Most bytes of any seed's files."""
    wer: float
    """Mean over seeds."""
    wer_low: float
    """Lower end of the 95 % interval over utterances, the seeds being what they are."""
    wer_high: float
    wer_of_seeds: tuple[float, ...]
    seeds: tuple[int | None, ...]
    commits: tuple[str | None, ...]
    utterance_passes: float
    """Sum over seeds, as all that follow. The models of a supernet share theirs."""
    optimizer_steps: int
    device_seconds: float
    search_evaluations: int
    teacher_utterance_passes: float
    teacher_device_seconds: float
    difference: float | None = None
    """Supernet only: WER minus that of gradual pruning at this size, in points."""
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    """Two-sided paired bootstrap probability that equal methods differ so clearly."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCost:
    """What all models of a row cost together, every training counted once."""

    row: str
    models: int
    """Models of different sizes and seeds that the row has."""
    trainings: int
    """Trainings behind them: their own, and those of teachers and initialisations."""
    utterance_passes: float
    optimizer_steps: int
    device_seconds: float
    search_evaluations: int
    teacher_utterance_passes: float
    """Part of ``utterance_passes`` that teachers and initialisations took."""
    teacher_device_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def make_cells(measurements: Sequence[Measurement]) -> list[Cell]:
    """Put the seeds of a cell together, and compare the supernet with gradual pruning.

    Returns:
        Cells by test set, row and size, the largest first.

    Raises:
        ValueError: If the models of one test set were not measured on the same utterances.
    """
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for item in measurements:
        groups.setdefault((item.test, item.row, item.size), []).append(item)
    order = {size: number for number, size in enumerate(sizes_of(measurements))}
    names = list(ROWS)
    cells = []
    for test, row, size in sorted(groups, key=lambda k: (k[0], names.index(k[1]), order[k[2]])):
        group = groups[test, row, size]
        rival = groups.get((test, RIVAL, size)) if row in SUPERNETS else None
        cells.append(_cell(group, None if rival is None else _difference(rival, group)))
    return cells


def sizes_of(measurements: Iterable[Measurement | Cell]) -> list[str]:
    """The columns, the largest first."""
    largest: dict[str, int] = {}
    for item in measurements:
        largest[item.size] = max(item.nonzero, largest.get(item.size, 0))
    return sorted(largest, key=lambda size: (-largest[size], size))


def _cell(group: Sequence[Measurement], found: PairedDifference | None) -> Cell:
    counts = pool([item.counts for item in group])
    low, high = bootstrap_interval(counts)
    accounts = [item.account for item in group]
    compared = {}
    if found is not None:
        compared = {
            "difference": found.difference,
            "difference_low": found.low,
            "difference_high": found.high,
            "p_value": found.p_value,
        }
    return Cell(
        row=group[0].row,
        size=group[0].size,
        test=group[0].test,
        nonzero=max(item.nonzero for item in group),
        bytes=max(item.bytes for item in group),
        wer=corpus_wer(counts),
        wer_low=low,
        wer_high=high,
        wer_of_seeds=tuple(corpus_wer(item.counts) for item in group),
        seeds=tuple(account.seed for account in accounts),
        commits=tuple(account.commit for account in accounts),
        utterance_passes=sum(account.utterance_passes for account in accounts),
        optimizer_steps=sum(account.optimizer_steps for account in accounts),
        device_seconds=sum(account.device_seconds for account in accounts),
        search_evaluations=sum(account.search_evaluations for account in accounts),
        teacher_utterance_passes=sum(account.teacher_utterance_passes for account in accounts),
        teacher_device_seconds=sum(account.teacher_device_seconds for account in accounts),
        **compared,
    )


def pool(parts: Sequence[Sequence[ErrorCounts]], *, times: int = 1) -> list[ErrorCounts]:
    """Add the errors of several models utterance by utterance; their rate is the mean rate.

    Args:
        parts: Errors of each model on the same utterances.
        times: Count everything so often, to set it against another number of models.

    Raises:
        ValueError: If the models were not measured on the same utterances.
    """
    words = [count.words for count in parts[0]]
    if any([count.words for count in part] != words for part in parts[1:]):
        raise ValueError("models of one table were measured on different utterances")
    return [
        ErrorCounts(
            substitutions=times * sum(count.substitutions for count in counts),
            deletions=times * sum(count.deletions for count in counts),
            insertions=times * sum(count.insertions for count in counts),
            words=times * sum(count.words for count in counts),
        )
        for counts in zip(*parts, strict=True)
    ]


def _difference(first: Sequence[Measurement], second: Sequence[Measurement]) -> PairedDifference:
    """WER of the second minus that of the first, paired by utterance, means over seeds."""
    common = math.lcm(len(first), len(second))
    return paired_bootstrap(
        *(pool([m.counts for m in part], times=common // len(part)) for part in (first, second))
    )


def to_markdown(
    cells: Sequence[Cell], costs: Sequence[RowCost], *, reference: Reference | None = None
) -> str:
    """The tables of all test sets, with what they cost, and the paper's beside them if asked."""
    parts = []
    for test in dict.fromkeys(cell.test for cell in cells):
        chosen = [cell for cell in cells if cell.test == test]
        parts += [f"## {test}", "", *_wer_lines(chosen, costs), "", *_size_lines(chosen), ""]
        parts += _significance_lines(chosen)
    parts += [
        "WER in %; in brackets the 95 % bootstrap interval over utterances. Several seeds: their "
        "mean. Training cost is that of the whole row, every training counted once, teachers and "
        "initialisations included; an utterance pass is one utterance forward and backward. "
        "`*`: differs from Sparsity (S) of the same size, paired bootstrap, p < 0.05.",
        "",
    ]
    if reference is not None:
        parts += [f"## {reference.title}", "", "Other data, other sizes: orderings compare.", ""]
        for table in reference.tables.values():
            parts += [*_reference_lines(table), ""]
    return "\n".join(parts)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _by_place(cells: Sequence[Cell]) -> dict[tuple[str, str], Cell]:
    return {(cell.row, cell.size): cell for cell in cells}


def wer_table(cells: Sequence[Cell], costs: Sequence[RowCost]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of one test set, as text.

    Args:
        cells: The cells of one test set.
        costs: The cost of every row.
    """
    sizes, places = sizes_of(cells), _by_place(cells)
    known = {cost.row: cost for cost in costs}
    rows = []
    for row in [row for row in ROWS if any(cell.row == row for cell in cells)]:
        line = [ROWS[row]]
        for size in sizes:
            cell = places.get((row, size))
            line.append("-" if cell is None else _wer_text(cell))
        cost = known.get(row)
        line += ["-"] * 3 if cost is None else [
            f"{cost.trainings}", format_count(cost.utterance_passes), f"{cost.device_seconds:,.0f}"
        ]  # fmt: skip
        rows.append(line)
    return ["method", *sizes, "trainings", "utterance passes", "device s"], rows


def _wer_text(cell: Cell) -> str:
    star = " *" if cell.p_value is not None and cell.p_value < SIGNIFICANT else ""
    return f"{cell.wer:.2f} ({cell.wer_low:.2f} - {cell.wer_high:.2f}){star}"


def _wer_lines(cells: Sequence[Cell], costs: Sequence[RowCost]) -> list[str]:
    return _table(*wer_table(cells, costs))


def _size_lines(cells: Sequence[Cell]) -> list[str]:
    sizes, places = sizes_of(cells), _by_place(cells)
    rows = []
    for row in [row for row in ROWS if any(cell.row == row for cell in cells)]:
        found = [places.get((row, size)) for size in sizes]
        texts = ["-" if c is None else f"{c.nonzero:,} / {c.bytes:,}" for c in found]
        seeds = next(len(c.seeds) for c in found if c is not None)
        rows.append([ROWS[row], *texts, f"{seeds}"])
    return _table(["non-zeros / bytes", *sizes, "seeds"], rows)


def _significance_lines(cells: Sequence[Cell]) -> list[str]:
    rows = [
        [
            ROWS[cell.row],
            cell.size,
            f"{cell.difference:+.2f}",
            f"{cell.difference_low:+.2f} to {cell.difference_high:+.2f}",
            f"{cell.p_value:.3f}",
        ]
        for cell in cells
        if cell.difference is not None
    ]
    if not rows:
        return []
    columns = ["minus sparsity (S)", "size", "WER points", "95 % interval", "p"]
    return [*_table(columns, rows), ""]


def _reference_lines(table: ReferenceTable) -> list[str]:
    rows = [
        ["-" if cell is None else ROWS.get(str(cell), str(cell)) for cell in row]
        for row in table.rows
    ]
    return [f"Table {table.number}: {table.title}", "", *_table(table.columns, rows)]
