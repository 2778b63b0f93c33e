"""Where compression breaks: ratios against word error rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnisparse.comparison.breaking import breaking_points, in_words, plot_breaking
from omnisparse.comparison.report import write_comparison
from omnisparse.comparison.rows import METHODS
from omnisparse.comparison.table import Cell, Measurement, RowCost, make_cells
from omnisparse.console import Console
from omnisparse.evaluation.account import TrainingAccount
from omnisparse.evaluation.wer import ErrorCounts


def model(row: str, nonzero: int, errors: int) -> Measurement:
    """A net with so many errors in 100 words."""
    counts = tuple(ErrorCounts(substitutions=int(n < errors), words=1) for n in range(100))
    return Measurement(
        row=row, size=str(nonzero), test="t", run=f"{row}-{nonzero}", parameters=nonzero,
        nonzero=nonzero, bytes=4 * nonzero, counts=counts, characters=counts,
        account=TrainingAccount(utterance_passes=1.0, device_seconds=1.0, seed=0, commit="c"),
    )  # fmt: skip


MODELS = [
    model("base", 1000, 20),
    model("base", 100, 60),  # a small dense net, which ratios are not of
    model("rank_search", 500, 20),
    model("rank_search", 200, 23),
    model("rank_search", 125, 40),
    model("iterative", 500, 21),
    model("iterative", 200, 22),
    model("iterative", 125, 22),
    model("rank_uniform", 500, 30),
    model("rank_uniform", 200, 10),
    model("progressive", 500, 20),
]


def cells() -> list[Cell]:
    return make_cells(MODELS)


def test_the_first_ratio_beyond_the_limit_breaks() -> None:
    found = {point.row: (point.holds_to, point.breaks_at) for point in breaking_points(cells())}
    assert found == {  # the limit is 22 %; one size makes no curve
        "rank_search": (2.0, 5.0),
        "iterative": (8.0, None),
        "rank_uniform": (None, 2.0),
    }
    looser = breaking_points(cells(), tolerance=0.2)
    assert next(point for point in looser if point.row == "rank_search").holds_to == 5.0


def test_words() -> None:
    lines = {point.row: in_words(point) for point in breaking_points(cells())}
    searched = "t: Searched ranks, retrained holds to 2.0x, breaks at 5.0x (limit 22.00 % WER)"
    assert lines["rank_search"] == searched
    assert "holds to 8.0x (" in lines["iterative"]
    assert "holds at no measured ratio, breaks at 2.0x" in lines["rank_uniform"]


def test_without_the_dense_net_there_is_no_ratio(tmp_path: Path) -> None:
    alone = [cell for cell in cells() if cell.row != "base"]
    assert breaking_points(alone) == ()
    with pytest.raises(ValueError, match="the dense net"):
        plot_breaking(alone, tmp_path / "x.png", test="t")


def test_compare_draws_and_says_it(tmp_path: Path) -> None:
    costs = [
        RowCost(
            row=row, models=1, trainings=1, utterance_passes=1.0, optimizer_steps=1,
            device_seconds=1.0, search_evaluations=0, teacher_utterance_passes=0.0,
            teacher_device_seconds=0.0,
        )
        for row in dict.fromkeys(item.row for item in MODELS)
    ]  # fmt: skip
    written = write_comparison(
        tmp_path,
        MODELS,
        costs,
        rows=METHODS,
        reference=None,
        wandb="off",
        console=Console(quiet=True),
    )
    assert (tmp_path / "compare_breaking.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "compare_breaking.png") in written["files"]
    stored = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert [point["row"] for point in stored["breaking_points"]] == [
        "rank_uniform", "rank_search", "iterative",
    ]  # fmt: skip
    assert "Iterative rank search holds to 8.0x" in (tmp_path / "compare.md").read_text()
