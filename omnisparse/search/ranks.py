"""The space of ranks that a search looks through: a choice for every matrix, inside a budget.

A choice is a place on a grid of shares of the break-even rank, the same grid for every matrix; the
last place keeps the matrix whole. The wall allows a choice only where the matrices that follow can
still be paid for, so that every complete walk through the matrices is inside the budget.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from omnisparse.sparsity.decomposition import RankBudget

NUM_SHARES = 12
"""Places of the grid below the whole matrix."""

SMALLEST_SHARE = 1 / 24
"""Of the break-even rank, at the first place."""


@dataclass(frozen=True, slots=True)
class RankSpace:
    """Ranks of every matrix of a net, and what they cost.

    Attributes:
        budget: Shapes of the matrices and parameters of the rest.
        total: Most parameters of the whole net.
        names: The matrices, in the order in which they are decided.
        choices: Of each matrix, ranks from the smallest on; None, the last, keeps it whole.
        costs: Parameters of each choice.
        limits: Largest rank of each matrix that is a product.
    """

    budget: RankBudget
    total: int
    names: tuple[str, ...]
    choices: tuple[tuple[int | None, ...], ...]
    costs: tuple[tuple[int, ...], ...]
    limits: tuple[int, ...]

    @classmethod
    def make(
        cls,
        budget: RankBudget,
        total: int,
        allowed: Mapping[str, Iterable[int]] | None = None,
        *,
        limits: Mapping[str, int] | None = None,
    ) -> RankSpace:
        """The space of a budget.

        Args:
            budget: What ranks cost.
            total: Most parameters of the whole net.
            allowed: Places of the grid that a sensitivity test left, by matrix; all if None.
            limits: Largest ranks of matrices that are products already; they do not become whole.

        Raises:
            ValueError: If not even the cheapest choices fit; names the reachable range.
        """
        choices, costs = [], []
        for name in budget.shapes:
            limit = budget.break_even(name)
            ranks = [max(1, round(share * limit)) for share in grid()] if limit else []
            options: list[int | None] = [*ranks, None]
            most = (limits or {}).get(name)
            if most is not None:
                options = [min(option or most, most) for option in options]
            if allowed is not None and name in allowed:
                kept = set(allowed[name])
                options = [option for place, option in enumerate(options) if place in kept]
            choices.append(tuple(options))
            costs.append(tuple(budget.cost(name, option) for option in options))
        largest = [
            min(budget.break_even(name), (limits or {}).get(name, budget.full(name)))
            for name in budget.shapes
        ]
        space = cls(
            budget, total, tuple(budget.shapes), tuple(choices), tuple(costs), tuple(largest)
        )
        least = budget.fixed + sum(min(costs) for costs in space.costs)
        if least > total:
            raise ValueError(
                f"{total:,} {budget.unit} cannot be reached with these ranks; legal: {least:,} to "
                f"{budget.dense:,}"
            )
        return space

    def legal(self, step: int, spent: int) -> list[bool]:
        """The wall: choices of a matrix after which the rest can still be paid for.

        Args:
            step: Which matrix is decided.
            spent: Parameters of the matrices decided before.
        """
        rest = sum(min(costs) for costs in self.costs[step + 1 :])
        left = self.total - self.budget.fixed - spent - rest
        return [cost <= left for cost in self.costs[step]]

    def walled(self, wanted: Sequence[int]) -> list[int]:
        """The nearest places to those wanted that are inside the budget, decided in order.

        Args:
            wanted: A place of the grid for every matrix.
        """
        places: list[int] = []
        spent = 0
        for step, place in enumerate(wanted):
            legal = [index for index, ok in enumerate(self.legal(step, spent)) if ok]
            place = min(legal, key=lambda index: (abs(index - place), index))
            places.append(place)
            spent += self.costs[step][place]
        return places

    def ranks(self, places: Sequence[int]) -> dict[str, int]:
        """Ranks by name; a matrix that stays whole is not named.

        What the places leave of the budget is given to all factored matrices in proportion, so
        that candidates differ in how they share the budget, not in how much of it they use.
        """
        chosen = {}
        for name, options, place in zip(self.names, self.choices, places, strict=True):
            rank = options[place]
            if rank is not None:
                chosen[name] = rank

        limits = dict(zip(self.names, self.limits, strict=True))

        def grown(factor: float) -> dict[str, int]:
            return {
                name: max(rank, min(int(factor * rank), limits[name]))
                for name, rank in chosen.items()
            }

        low, high = 1.0, 1.0 / SMALLEST_SHARE
        if self.budget.parameters(chosen) > self.total:
            return chosen
        for _ in range(40):
            middle = (low + high) / 2
            if self.budget.parameters(grown(middle)) <= self.total:
                low = middle
            else:
                high = middle
        return grown(low)

    def places(self, ranks: Mapping[str, int]) -> list[int]:
        """The places of the grid that are nearest to given ranks, inside the budget."""
        wanted = []
        for name, options in zip(self.names, self.choices, strict=True):
            rank = ranks.get(name)
            last = len(options) - 1
            if rank is None:
                wanted.append(last)
                continue
            # Never above what is asked for where there is a choice: the budget is full as it is.
            below = [index for index, option in enumerate(options) if option and option <= rank]
            wanted.append(below[-1] if below else 0)
        return self.walled(wanted)


def grid() -> list[float]:
    """Shares of the break-even rank, in equal ratios."""
    step = SMALLEST_SHARE ** (1 / (NUM_SHARES - 1))
    return [step ** (NUM_SHARES - 1 - place) for place in range(NUM_SHARES)]


def ranks_key(ranks: Mapping[str, int], scheme: str = "stacked") -> str:
    """A name of ranks in a scheme that equal ones share, in every process."""
    named: list[object] = [*sorted(ranks.items())]
    if scheme != "stacked":
        named.append(scheme)
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]
