"""What low ranks of one matrix alone do to a net: the search space and a start for rank searches.

In the style of ShrinkML (Dudziak et al. 2019, arXiv:1907.03540), whose search space is formed from
such tests; how is not readable there. Ours, by choice: each matrix alone is tried at a few places
of its grid; between them the increase of the error is interpolated in the logarithm of the rank,
never falling as the rank falls.

Legend: M matrices, P places of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from omnisparse.search.ranks import RankSpace

Error = Callable[[Mapping[str, int]], float]
"""Error of a net with these ranks; matrices that are not named stay whole."""

TRIED = (0, 3, 6, 9)
"""Places of the grid at which each matrix is tried."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Increase of the error for every place of every matrix, alone.

    Attributes:
        whole: Error of the net without products.
        increases: M rows of P increases, at least 0, falling with the place.
        evaluations: Nets that were measured.
    """

    whole: float
    increases: tuple[tuple[float, ...], ...]
    evaluations: int

    def allowed(self, space: RankSpace, tolerance: float) -> dict[str, list[int]]:
        """Places of each matrix that cost at most ``tolerance`` times the whole net's error.

        Where what is left cannot be inside the budget, or hardly, more is tolerated: as much as
        lets the cheapest places together take at most half of the room.
        """
        room = space.total - space.budget.fixed
        limit = tolerance * self.whole
        while True:
            kept = [
                [place for place, increase in enumerate(row) if increase <= limit]
                for row in self.increases
            ]
            least = sum(
                min(costs[place] for place in places)
                for costs, places in zip(space.costs, kept, strict=True)
            )
            everything = all(
                len(places) == len(row) for places, row in zip(kept, self.increases, strict=True)
            )
            if least <= room / 2 or everything:
                return dict(zip(space.names, kept, strict=True))
            limit = max(1.25 * limit, 1e-3 * self.whole)

    def best_places(self, space: RankSpace) -> list[int]:
        """Places inside the budget with the least sum of increases, as if these just added up.

        Source: Everett 1963 (Lagrange multipliers for choices): the sum of increase and price times
        cost is smallest for each matrix by itself; the price is found by bisection.
        """
        room = space.total - space.budget.fixed

        def at(price: float) -> list[int]:
            return [
                min(range(len(row)), key=lambda place: (row[place] + price * costs[place], place))
                for row, costs in zip(self.increases, space.costs, strict=True)
            ]

        def cost(places: Sequence[int]) -> int:
            return sum(costs[place] for costs, place in zip(space.costs, places, strict=True))

        low, high = 0.0, 1.0
        while cost(at(high)) > room and high < 1e12:
            low, high = high, high * 10
        for _ in range(60):
            middle = (low + high) / 2
            if cost(at(middle)) <= room:
                high = middle
            else:
                low = middle
        return space.walled(at(high))


def measure_sensitivity(
    space: RankSpace, error: Error, *, tried: Sequence[int] = TRIED
) -> Sensitivity:
    """Try each matrix alone at a few places of its grid.

    Args:
        space: Matrices and places.
        error: Measures a net.
        tried: Places that are measured; those between are interpolated.
    """
    whole = error({})
    rows = []
    count = 1
    for name, options, costs in zip(space.names, space.choices, space.costs, strict=True):
        known: dict[int, float] = {}
        for place in tried:
            rank = options[place] if place < len(options) else None
            if rank is not None:
                known[place] = max(0.0, error({name: rank}) - whole)
                count += 1
        known[len(options) - 1] = 0.0
        rows.append(_interpolated(known, costs))
    return Sensitivity(whole, tuple(rows), count)


def places_to_try(matrices: int, evaluations: int) -> tuple[int, ...]:
    """Places of the grid for a sensitivity test that takes a third of the evaluations at most."""
    count = min(4, (evaluations // 3 - 1) // max(1, matrices))
    return {4: (0, 3, 6, 9), 3: (1, 4, 8), 2: (2, 7), 1: (4,)}.get(count, ())


def _interpolated(known: Mapping[int, float], costs: Sequence[int]) -> tuple[float, ...]:
    """``[P]`` increases from those at some places, falling with the place."""
    values: list[float] = []
    places = sorted(known)
    # An increase that grows with the rank is noise: the larger rank counts as the smaller one.
    falling = [max(known[later] for later in places[index:]) for index in range(len(places))]
    for place in range(len(costs)):
        after = next(index for index, at in enumerate(places) if at >= place)
        if places[after] == place or after == 0:
            values.append(falling[after])
            continue
        left, right = places[after - 1], places[after]
        span = math.log(costs[right] / costs[left])
        share = 1.0 if span <= 0 else math.log(costs[place] / costs[left]) / span
        values.append(falling[after - 1] + share * (falling[after] - falling[after - 1]))
    return tuple(values)
