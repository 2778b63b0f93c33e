"""Which column a run belongs to, and what the reader is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omnisparse.comparison import plan
from omnisparse.comparison.candidates import Candidate
from omnisparse.comparison.plan import Model, plan_models, require_trainings
from omnisparse.errors import OmnisparseError
from omnisparse.runs.record import RunRecord, Training
from omnisparse.sparsity.budget import Budget

SHAPES = {"w": (100, 90), "bias": (1000,)}


def candidate(name: str, nonzero: int, *, is_supernet: bool = False) -> Candidate:
    record = RunRecord(training=Training(run=name, identity=name), sources=(), row=None, size=None,
                       seed=0, commit=None)  # fmt: skip
    return Candidate(path=Path(name), record=record, row=name, is_supernet=is_supernet,
                     parameters=10_000, nonzero=nonzero)  # fmt: skip


def told(monkeypatch: pytest.MonkeyPatch, *candidates: Candidate, sizes: Any) -> list[str]:
    monkeypatch.setattr(plan, "_budget", lambda run: Budget(SHAPES, ["w"]))
    monkeypatch.setattr(plan, "smallest_trained", lambda run, shapes: 3_000)
    lines: list[str] = []
    models = plan_models(candidates, sizes, lines.append)
    assert len(models) == len(candidates) * (len(sizes) if candidates[0].is_supernet else 1)
    return lines


@pytest.mark.parametrize(
    ("nonzero", "line"),
    [
        (5_000, None),
        (4_800, None),  # smaller is no advantage
        (5_020, None),
        (5_040, "own: its 5,040 non-zeros are 0.8% above 50% (5,000)"),
        (5_240, "own: its 5,240 non-zeros are 4.8% above 50% (5,000)"),
    ],
)
def test_a_run_above_its_column_is_told(
    monkeypatch: pytest.MonkeyPatch, nonzero: int, line: str | None
) -> None:
    found = told(monkeypatch, candidate("own", nonzero), sizes=["50%"])
    assert found == ([] if line is None else [line])


def test_a_run_far_above_every_column_is_refused() -> None:
    with pytest.raises(OmnisparseError, match=r"5,300 non-zeros fit none of the sizes 50% \(5,000"):
        plan_models([candidate("own", 5_300)], ["50%"], lambda line: None)


def test_a_size_that_a_supernet_never_trained_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(
        monkeypatch, candidate("net", 10_000, is_supernet=True), sizes=["50%", "30%", "20%"]
    )
    (line,) = found
    assert line.startswith("net: 20%: 2,000 non-zero parameters are fewer than the smallest size")
    assert "3,000" in line


def test_a_supernet_with_another_dense_net_than_the_columns_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of a smaller net is no rival of half of a larger one."""
    small = Budget({"w": (100, 40), "bias": (1000,)}, ["w"])
    large = Budget(SHAPES, ["w"])
    monkeypatch.setattr(plan, "_budget", lambda run: large if run.name == "large" else small)
    monkeypatch.setattr(plan, "smallest_trained", lambda run, shapes: None)
    nets = [candidate(name, 10_000, is_supernet=True) for name in ("large", "small")]
    lines: list[str] = []
    assert len(plan_models(nets, ["50%"], lines.append)) == 2
    assert lines == [
        "small: 50%: its 2,500 non-zeros are 0.50 times those of the column, 5,000: its dense net "
        "is another"
    ]


def models_of(*nets: tuple[str, str, str]) -> list[Model]:
    """Models of one row, from a path, an identity and a column each; their seeds are unknown."""
    found = []
    for path, identity, size in nets:
        record = RunRecord(training=Training(run=path, identity=identity), sources=(), row=None,
                           size=None, seed=None, commit=None)  # fmt: skip
        one = Candidate(path=Path(path), record=record, row="base", is_supernet=False,
                        parameters=10, nonzero=10)  # fmt: skip
        found.append(Model(candidate=one, size=size, request=None))
    return found


@pytest.mark.parametrize(
    ("nets", "line"),
    [
        ([("/r/a", "1", "100%"), ("/r/b", "2", "100%")], None),
        ([("/r/a", "1", "100%"), ("/r/a/weights/size-50pct", "1", "50%")], None),
        (
            [("/r/a", "1", "100%"), ("/r/a/weights/ema", "2", "100%")],
            "/r/a and /r/a/weights/ema are both base at 100% and of one training, so they are not "
            "two seeds: leave one out, or compare --by configuration, where other weights are a "
            "row of their own",
        ),
        (
            [("/r/a/weights/ema", "1", "50%"), ("/r/a/weights/best", "2", "50%")],
            "/r/a/weights/ema and /r/a/weights/best are both base at 50% and of one training",
        ),
        (
            [("/r/a", "1", "100%"), ("/r/b", "2", "100%"), ("/r/copy", "1", "100%")],
            "/r/a and /r/copy are both base at 100% and of one training, so they are not two "
            "seeds: leave one out",
        ),
    ],
)
def test_one_training_is_never_two_seeds(nets: list[Any], line: str | None) -> None:
    if line is None:
        return require_trainings(models_of(*nets))
    with pytest.raises(OmnisparseError) as failed:
        require_trainings(models_of(*nets))
    assert str(failed.value).startswith(line)
    return None
