"""How far a net can be compressed before it breaks: WER against the ratio of compression.

A ratio of 5 means a fifth of the dense net's parameters, those that are never compressed among
them. A method breaks at a ratio if its word error rate there is above the dense net's by more than
a tolerance; up to which ratio it holds is what methods of several rounds are made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnisparse.comparison.rows import PLANS, ROWS
from omnisparse.comparison.table import Cell
from omnisparse.evaluation.pareto import (
    COLOURS,
    new_figure,
    save_figure,
    style_axes,
    wer_limits,
)

TOLERANCE = 0.1
"""A model holds up to a rate that is above the dense net's by this share of it."""

_DENSE = "base"


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakingPoint:
    """Between which ratios a method breaks."""

    row: str
    test: str
    limit: float
    """Highest word error rate that holds, percent."""
    holds_to: float | None
    """The largest measured ratio below ``breaks_at``; None if the smallest breaks."""
    breaks_at: float | None
    """The smallest measured ratio that breaks; None if all hold."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def breaking_points(
    cells: Sequence[Cell], *, tolerance: float = TOLERANCE
) -> tuple[BreakingPoint, ...]:
    """Where the methods of a comparison break that compress over one or several stages.

    Args:
        cells: Of one test set.
        tolerance: Share of the dense net's rate, at least 0.

    Returns:
        One of each row that has two sizes or more; empty without the dense net.
    """
    dense = _dense_of(cells)
    if dense is None:
        return ()
    limit = (1 + tolerance) * dense.wer
    found = []
    for row, chosen in _curves(cells).items():
        ratios = [dense.nonzero / cell.nonzero for cell in chosen]
        broken = [ratio for ratio, cell in zip(ratios, chosen, strict=True) if cell.wer > limit]
        first = min(broken, default=None)
        held = [ratio for ratio in ratios if first is None or ratio < first]
        found.append(
            BreakingPoint(
                row=row, test=dense.test, limit=limit,
                holds_to=max(held, default=None), breaks_at=first,
            )
        )  # fmt: skip
    return tuple(found)


def plot_breaking(
    cells: Sequence[Cell], path: Path, *, test: str, tolerance: float = TOLERANCE
) -> None:
    """Draw the word error rate against the ratio, with the rate up to which a model holds.

    Args:
        cells: Of one test set, with the dense net and a row of two sizes or more.
        path: The image to write; its suffix is the format.
        test: Name of the test set.
        tolerance: As of :func:`breaking_points`.

    Raises:
        ValueError: If nothing can be drawn.
    """
    dense, curves = _dense_of(cells), _curves(cells)
    if dense is None or not curves:
        raise ValueError("cells: expected the dense net and a row of two sizes or more")
    figure = new_figure(6.8, 4.4)
    axes = figure.add_subplot()
    drawn = [dense]
    for number, (row, chosen) in enumerate(curves.items()):
        ratios = [dense.nonzero / cell.nonzero for cell in chosen]
        below = [0.0 if c.wer_low is None else max(0.0, c.wer - c.wer_low) for c in chosen]
        above = [0.0 if c.wer_high is None else max(0.0, c.wer_high - c.wer) for c in chosen]
        axes.errorbar(
            ratios, [cell.wer for cell in chosen], yerr=[below, above], label=ROWS[row],
            color=COLOURS[number % len(COLOURS)], marker="o", linewidth=1.8, capsize=3,
            elinewidth=1.0,
        )  # fmt: skip
        drawn += chosen
    limit = (1 + tolerance) * dense.wer
    axes.axhline(dense.wer, color="#787774", linewidth=1, label=f"dense net: {dense.wer:.2f} %")
    axes.axhline(
        limit, color="#787774", linewidth=1, linestyle="--",
        label=f"holds: up to {limit:.2f} % ({tolerance:.0%} above)",
    )  # fmt: skip
    axes.set_ylim(*wer_limits(drawn))
    axes.set_xlabel("times smaller than the dense net (parameters of the whole net)")
    axes.set_ylabel("word error rate, %")
    axes.set_title(f"{test}: where compression breaks", loc="left", fontsize=10, fontweight="bold")
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes)
    save_figure(figure, path)


def in_words(point: BreakingPoint) -> str:
    """A breaking point as a line for the reader."""
    held = "at no measured ratio" if point.holds_to is None else f"to {point.holds_to:.1f}x"
    broken = "" if point.breaks_at is None else f", breaks at {point.breaks_at:.1f}x"
    return f"{point.test}: {ROWS[point.row]} holds {held}{broken} (limit {point.limit:.2f} % WER)"


def _dense_of(cells: Sequence[Cell]) -> Cell | None:
    """The largest net that was trained as it is."""
    return max(
        (cell for cell in cells if cell.row == _DENSE), key=lambda cell: cell.nonzero, default=None
    )


def _curves(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The rows that compress in stages, with two sizes or more each, largest first."""
    by_row = {
        row: sorted((c for c in cells if c.row == row), key=lambda cell: -cell.nonzero)
        for row in PLANS
    }
    return {row: chosen for row, chosen in by_row.items() if len(chosen) > 1}
