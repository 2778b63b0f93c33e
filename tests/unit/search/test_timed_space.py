"""Subnets of a time: the largest that keep it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from omnisparse.sparsity.timed_space import TimedSpace

SHAPES = {"a.weight": (64, 32), "b.weight": (128, 64)}


def time_of(counts: Mapping[str, int]) -> int:
    """The first matrix is multiplied ten times as often; the rest of the net takes 500."""
    return 500 + 10 * counts["a.weight"] + counts["b.weight"]


@pytest.mark.parametrize("limit", [1000, 5000, 12345])
@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0])
def test_the_largest_subnet_that_keeps_the_time(limit: int, offset: float) -> None:
    space = TimedSpace(SHAPES, time_of, spread=3.0)
    group = next(iter(space.groups))
    counts = space.spec(limit, {group: offset}).counts(space.numel)
    assert time_of(counts) <= limit < time_of(counts) + 11 * 2
    assert counts["a.weight"] < space.numel["a.weight"]


def test_all_of_it_where_all_keeps_the_time_and_an_error_where_nothing_does() -> None:
    space = TimedSpace(SHAPES, time_of, spread=3.0)
    assert space.spec(10**9).counts(space.numel) == space.numel
    with pytest.raises(ValueError, match=f"the fastest takes {space.fastest()} ns"):
        space.spec(400)
