"""What single matrices cost, and the places that follow from it, on errors that are known."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnisparse.search.ranks import NUM_SHARES, RankSpace
from omnisparse.search.sensitivity import Sensitivity, measure_sensitivity, places_to_try
from omnisparse.sparsity.decomposition import RankBudget, break_even_rank

SHAPES = {"a": (256, 128), "b": (192, 192), "c": (160, 320)}
BUDGET = RankBudget(SHAPES, fixed=500)
SPACE = RankSpace.make(BUDGET, int(0.4 * BUDGET.dense))
WEIGHTS = {"a": 3.0, "b": 0.2, "c": 1.0}
EVERY = tuple(range(NUM_SHARES))


def error(ranks: Mapping[str, int]) -> float:
    """Errors that really add up: what is missing of each matrix's break-even rank."""
    return 1.0 + sum(
        WEIGHTS[name] * (1 - rank / (break_even_rank(*SHAPES[name]) + 1)) ** 2
        for name, rank in ranks.items()
    )


def at(places: tuple[int, ...] | list[int]) -> float:
    chosen = {n: o[p] for n, o, p in zip(SPACE.names, SPACE.choices, places, strict=True)}
    return error({name: rank for name, rank in chosen.items() if rank is not None})


def test_single_matrices_are_measured_and_counted() -> None:
    found = measure_sensitivity(SPACE, error, tried=(0, 6))
    assert found.evaluations == 1 + 2 * len(SHAPES)
    assert found.whole == 1.0
    for name, options, row in zip(SPACE.names, SPACE.choices, found.increases, strict=True):
        for place in (0, 6):
            rank = options[place]
            assert rank is not None
            assert row[place] == pytest.approx(error({name: rank}) - 1.0)
        assert row[-1] == 0.0  # the matrix as it is
        assert list(row) == sorted(row, reverse=True)


def test_an_increase_that_grows_with_the_rank_is_noise() -> None:
    noisy = {0: 0.1, 3: 0.4, 6: 0.2, 9: 0.3}

    def measured(ranks: Mapping[str, int]) -> float:
        if not ranks:
            return 1.0
        ((name, rank),) = ranks.items()
        return 1.0 + noisy[SPACE.choices[SPACE.names.index(name)].index(rank)]

    for row in measure_sensitivity(SPACE, measured).increases:
        assert list(row) == sorted(row, reverse=True)
        assert [row[place] for place in (0, 3, 6, 9)] == pytest.approx([0.4, 0.4, 0.3, 0.3])


def test_places_are_as_good_as_the_best_where_errors_add_up() -> None:
    found = measure_sensitivity(SPACE, error, tried=EVERY)
    places = found.best_places(SPACE)
    room = SPACE.total - BUDGET.fixed

    def cost(chosen: tuple[int, ...] | list[int]) -> int:
        return sum(costs[place] for costs, place in zip(SPACE.costs, chosen, strict=True))

    assert cost(places) <= room
    inside = [p for p in itertools.product(range(NUM_SHARES + 1), repeat=3) if cost(p) <= room]
    best = min(map(at, inside))
    worst = at(SPACE.places(BUDGET.uniform(SPACE.total)))
    assert at(places) - best < 0.25 * (worst - best)


@settings(max_examples=30)
@given(share=st.floats(0.15, 1.0), tolerance=st.floats(0, 3))
def test_allowed_places_leave_room_for_the_budget(share: float, tolerance: float) -> None:
    space = RankSpace.make(BUDGET, int(share * BUDGET.dense))
    found = measure_sensitivity(space, error)
    allowed = found.allowed(space, tolerance)
    smaller = RankSpace.make(BUDGET, space.total, allowed)  # raises where nothing fits
    assert all(allowed[name] == sorted(set(allowed[name])) for name in space.names)
    for name, row in zip(space.names, found.increases, strict=True):
        cheap = [place for place, increase in enumerate(row) if increase <= tolerance]
        assert set(cheap) <= set(allowed[name])
    rows = tuple(
        tuple(row[place] for place in allowed[name])
        for name, row in zip(space.names, found.increases, strict=True)
    )
    places = Sensitivity(found.whole, rows, 0).best_places(smaller)
    assert BUDGET.parameters(smaller.ranks(places)) <= space.total


@pytest.mark.parametrize(
    ("matrices", "evaluations", "expected"),
    [(10, 8, 0), (10, 32, 0), (10, 33, 1), (10, 123, 4), (10, 10_000, 4), (3, 30, 3)],
)
def test_a_third_of_the_evaluations_at_most(matrices: int, evaluations: int, expected: int) -> None:
    places = places_to_try(matrices, evaluations)
    assert len(places) == expected
    assert not places or 1 + matrices * len(places) <= evaluations / 3


def test_ranks_of_products_only_fall() -> None:
    limits = {"a": 16, "b": 36}
    space = RankSpace.make(BUDGET, SPACE.total, limits=limits)
    for places in ([0, 0, 0], [12, 12, 0], space.places(BUDGET.uniform(space.total))):
        ranks = space.ranks(space.walled(places))
        assert all(ranks[name] <= limit for name, limit in limits.items())
        assert BUDGET.parameters(ranks) <= space.total
