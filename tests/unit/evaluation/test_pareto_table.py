"""Tables and plots hold what they were given, and appear whole."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from omnisparse.evaluation.account import TrainingAccount
from omnisparse.evaluation.pareto import (
    ResultRow,
    format_count,
    new_figure,
    plot_pareto,
    style_size_axes,
    wer_limits,
    write_csv,
)


def _row(curve: str, size: str, nonzero: int, wer: float) -> ResultRow:
    return ResultRow(
        curve=curve,
        size=size,
        parameters=1000,
        nonzero=nonzero,
        bytes=4 * nonzero,
        wer=wer,
        wer_low=wer - 1,
        wer_high=wer + 1,
        seconds=0.5,
        account=TrainingAccount(utterance_passes=12.5, seed=3),
    )


ROWS = [
    _row("supernet", "dense", 1000, 5.0),
    _row("supernet", "25%", 250, 6.0),
    _row("baseline", "25%", 250, 60.25),
]


def test_csv_reads_back(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["size"] for row in read] == ["dense", "25%", "25%"]
    assert float(read[2]["wer"]) == 60.25
    assert (read[2]["utterance_passes"], read[2]["seed"]) == ("12.5", "3")
    assert "account" not in read[2]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_plot_is_an_image_and_leaves_nothing_else(tmp_path: Path) -> None:
    plot_pareto(ROWS, tmp_path / "pareto.png", title="WER against size")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["pareto.png"]


def test_plot_of_one_model(tmp_path: Path) -> None:
    plot_pareto(ROWS[:1], tmp_path / "one.png", title="one")
    assert (tmp_path / "one.png").stat().st_size > 0


def test_plot_needs_a_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows"):
        plot_pareto([], tmp_path / "none.png", title="none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wers", "start"),
    [
        ((5.0, 6.0, 60.25), 0.0),  # one is near 0
        ((70.0, 75.0, 80.0), 67.0),  # curves would lie over each other below the upper edge
        ((5.0, 5.5, 6.0), 0.0),  # intervals reach far down
        ((0.0, 0.0, 0.0), 0.0),
        ((95.0, 300.0, 900.0), 92.0),
    ],
)
def test_the_axis_starts_near_rates_that_are_far_from_zero(
    wers: tuple[float, ...], start: float
) -> None:
    spread = 1.0 if max(wers) > 50 else 0.9 * wers[0]
    rows = [
        replace(_row("a", "25%", 250 * n, wer), wer_low=wer - spread, wer_high=wer + spread)
        for n, wer in enumerate(wers, start=1)
    ]
    low, high = wer_limits(rows)
    assert low == pytest.approx(start, abs=1)
    assert low <= min(row.wer_low for row in rows)
    assert high > min(105, max(row.wer for row in rows)) or high == 105
    axes = new_figure(4, 3).add_subplot()
    style_size_axes(axes, rows)
    assert ("the axis starts at" in axes.get_ylabel()) == (low > 0)


@pytest.mark.parametrize(
    ("count", "text"), [(950, "950"), (85_200, "85.2k"), (3_300_000, "3.30M"), (2e9, "2.00G")]
)
def test_counts_as_people_say_them(count: float, text: str) -> None:
    assert format_count(count) == text
