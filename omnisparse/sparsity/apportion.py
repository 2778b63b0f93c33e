"""Whole numbers in given proportions with an exact sum, to divide a total among matrices."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction


def apportion(
    total: int, shares: Sequence[float], lower: Sequence[int], upper: Sequence[int]
) -> list[int]:
    """Split `total` in proportion to `shares` within bounds.

    Webster's divisor method: the j-th unit of entry i has the priority (2j - 1) / share. Units
    are given in order of priority; ties go to the first entry. No entry ever shrinks when the
    total grows, so the subnet of a larger budget contains that of a smaller one. Rounding by
    largest remainder does not have this property.

    Args:
        total: Sum to reach, between `sum(lower)` and `sum(upper)`.
        shares: Positive weights.
        lower: Fewest units per entry; they are given before all other units.
        upper: Most units per entry.

    Returns:
        One count per entry; their sum is exactly `total`.

    Raises:
        ValueError: If `total` is outside its range.
    """
    if not sum(lower) <= total <= sum(upper):
        raise ValueError(f"total {total} is out of range; legal: {sum(lower)} to {sum(upper)}")
    exact = [Fraction(share) for share in shares]
    counts = _near(total, shares, lower, upper)
    entries = range(len(counts))

    def next_unit(entry: int) -> tuple[Fraction, int]:
        return (2 * counts[entry] + 1) / exact[entry], entry

    def last_unit(entry: int) -> tuple[Fraction, int]:
        return (2 * counts[entry] - 1) / exact[entry], entry

    # A heap instead of a search per unit: with equal shares, each entry may miss a unit.
    waiting = [next_unit(entry) for entry in entries if counts[entry] < upper[entry]]
    heapq.heapify(waiting)
    for _ in range(total - sum(counts)):
        entry = waiting[0][1]
        counts[entry] += 1
        if counts[entry] < upper[entry]:
            heapq.heapreplace(waiting, next_unit(entry))
        else:
            heapq.heappop(waiting)
    while True:  # move units that the floating-point start gave to the wrong entry
        first = min((next_unit(i) for i in entries if counts[i] < upper[i]), default=None)
        worst = max((last_unit(i) for i in entries if counts[i] > lower[i]), default=None)
        if first is None or worst is None or first > worst:
            return counts
        counts[worst[1]] -= 1
        counts[first[1]] += 1


def _near(
    total: int, shares: Sequence[float], lower: Sequence[int], upper: Sequence[int]
) -> list[int]:
    """Counts whose sum is `total` or a little less: the start of the exact search."""

    def at(scale: float) -> list[int]:
        return [
            min(max(math.floor(scale * share + 0.5), low), high)
            for share, low, high in zip(shares, lower, upper, strict=True)
        ]

    low, high = 0.0, max((most + 1) / share for share, most in zip(shares, upper, strict=True))
    for _ in range(64):
        middle = (low + high) / 2
        if sum(at(middle)) <= total:
            low = middle
        else:
            high = middle
    return at(low)
