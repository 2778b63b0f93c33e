from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.search.ranks import RankSpace
from omnisparse.sparsity.timed_ranks import TimedBudget

SHAPES = {"a": (100, 100), "b": (60, 40)}
TIMES = {"a": ((2, 100), (10, 300), (20, 250), (40, 900)), "b": ((3, 50), (12, 90))}
BUDGET = TimedBudget(SHAPES, 0, TIMES, {"a": 1000, "b": 200})


@pytest.mark.parametrize(
    ("name", "rank", "time"),
    [
        ("a", None, 1000),
        ("a", 2, 100),
        ("a", 1, 100),  # nothing is quicker than what was measured
        ("a", 6, 200),  # half way
        ("a", 20, 300),  # quicker than rank 10: noise
        ("a", 30, 600),
        ("b", 24, 180),  # beyond what was measured, in proportion
    ],
)
def test_times_between_measured_ranks(name: str, rank: int | None, time: int) -> None:
    assert BUDGET.cost(name, rank) == time


def test_the_whole_net_is_the_sum() -> None:
    assert BUDGET.dense == 1200
    assert BUDGET.parameters({"a": 2}) == 100 + 200


@given(share=st.floats(0.15, 1.0), wanted=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_the_wall_holds_a_budget_in_time(share: float, wanted: tuple[int, int]) -> None:
    space = RankSpace.make(BUDGET, int(share * BUDGET.dense))
    assert BUDGET.parameters(space.ranks(space.walled(wanted))) <= space.total


def test_out_of_reach_is_said_in_nanoseconds() -> None:
    with pytest.raises(ValueError, match="10 ns cannot be reached"):
        RankSpace.make(BUDGET, 10)
    with pytest.raises(ValueError, match="10 ns cannot be reached by low rank; legal: 150"):
        BUDGET.uniform(10)
