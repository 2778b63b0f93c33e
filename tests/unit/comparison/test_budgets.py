"""Three measures of a row's budget: what one is, and which are equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omnisparse.comparison.budgets import (
    budget_notes,
    budget_table,
    budgets_of_rows,
    with_unequal_marked,
)
from omnisparse.comparison.candidates import Candidate
from omnisparse.comparison.plan import Model
from omnisparse.comparison.rows import METHODS
from omnisparse.runs.record import RunRecord, Training

ROWS = replace(METHODS, labels={**METHODS.labels, "cut": "Dense, then cut"})


def training(name: str, passes: float, steps: int, flops: float | None) -> Training:
    return Training(run=name, identity=name, utterance_passes=passes, optimizer_steps=steps,
                    device_seconds=passes / 10, flops=flops)  # fmt: skip


def model(row: str, size: str, own: Training, seed: int, *sources: Training) -> Model:
    record = RunRecord(training=own, sources=sources, row=row, size=size, seed=seed, commit=None)
    candidate = Candidate(path=Path(own.run), record=record, row=row, parameters=10, nonzero=5,
                          is_supernet=row.startswith("supernet"))  # fmt: skip
    return Model(candidate=candidate, size=size, request=None)


def models(flops: float | None = 5e12) -> list[Model]:
    teacher = training("teacher", 900.0, 90, 9e12)
    found = [
        model("pruned", size, training(f"pruned-{size}-{seed}", 1000.0, 100, flops), seed)
        for size in ("50%", "25%")
        for seed in (0, 1)
    ]
    for seed in (0, 1):
        one = training(f"supernet-{seed}", 1010.0, 80, 6e12)
        found += [model("supernet", size, one, seed) for size in ("50%", "25%")]
        dense = training(f"dense-{seed}", 700.0, 70, 3.5e12)
        found += [
            model("cut", size, training(f"cut-{size}-{seed}", 150.0, 15, 0.75e12), seed, dense)
            for size in ("50%", "25%")
        ]
    student = training("student", 1000.0, 100, 7.5e12)
    return [*found, model("distilled", "25%", student, 0, teacher)]


def test_what_one_budget_is() -> None:
    """A pruned net's training; the training of all sizes; all parts of the nets that are cut."""
    budgets = {budget.row: budget for budget in budgets_of_rows(models(), ROWS)}
    assert list(budgets) == [row for row in ROWS.labels if row in budgets]
    found = {row: (b.passes, b.updates, b.flops) for row, b in budgets.items()}
    assert found["pruned"] == (1000.0, 100.0, 5e12)
    assert found["supernet"] == (1010.0, 80.0, 6e12)
    assert found["cut"] == (1000.0, 100.0, 5e12)
    assert found["distilled"] == (1000.0, 100.0, 7.5e12)  # its teacher's training is not in it
    assert budgets["pruned"].device_seconds == 100.0


def test_what_is_equal_is_said_and_what_is_not_is_marked() -> None:
    budgets = budgets_of_rows(models(), ROWS)
    passes, updates, flops = budget_notes(ROWS, budgets, None)
    assert passes == "utterance passes: equal (within 3%)"
    assert "optimizer updates: not equal" in updates
    assert "supernet 0.80x" in updates
    assert "distillation (D) 1.50x" in flops
    assert "supernet 1.20x" in flops
    assert budget_notes(ROWS, budgets, "updates") == [updates]
    marked = with_unequal_marked(ROWS, budgets, "flops").labels
    assert marked["supernet"] == "Supernet [1.20x FLOPs]"
    assert marked["pruned"] == ROWS.labels["pruned"]
    assert with_unequal_marked(ROWS, budgets, "passes") == ROWS
    assert with_unequal_marked(ROWS, budgets, None) is ROWS
    columns, lines = budget_table(ROWS, budgets)
    assert columns[1:] == ["utterance passes", "optimizer updates", "floating-point operations",
                           "device s"]  # fmt: skip
    line: list[Any] = next(line for line in lines if line[0] == "Supernet")
    assert line[2:] == ["80 (0.80x)", "6e+12 (1.20x)", "101"]


def test_runs_that_counted_nothing_show_nothing() -> None:
    budgets = budgets_of_rows(models(flops=None), ROWS)
    assert "not counted for" in budget_notes(ROWS, budgets, "flops")[0]
    lines = budget_table(ROWS, budgets)[1]
    assert next(line for line in lines if line[0] == ROWS.labels["pruned"])[3] == "-"
    assert next(line for line in lines if line[0] == "Supernet")[3] == "6e+12"
    marked = with_unequal_marked(ROWS, budgets, "flops").labels
    assert marked["pruned"].endswith("[FLOPs not counted]")
    assert budget_notes(ROWS, budgets[:1], None) == []
    with pytest.raises(AttributeError):
        budgets[0].row = "other"
