"""Subnets of a time instead of a number of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omnisparse.sparsity.space import SparsitySpace, SubnetSpec

TimeOf = Callable[[Mapping[str, int]], int]
"""Nanoseconds of a subnet that keeps so many weights of each matrix; more weights, no less time."""


class TimedSpace(SparsitySpace):
    """A space whose totals are nanoseconds.

    Args:
        shapes: As of :class:`SparsitySpace`.
        time_of: The time of a subnet.
        **options: As of :class:`SparsitySpace`.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int] | int], time_of: TimeOf, **options: Any
    ) -> None:
        super().__init__(shapes, **options)
        self._time_of = time_of
        self._found: dict[tuple[int, frozenset[tuple[str, float]]], SubnetSpec] = {}

    def spec(self, total_kept: int, offsets: Mapping[str, float] | None = None) -> SubnetSpec:
        """The largest subnet of the offsets that takes at most so long.

        Args:
            total_kept: Nanoseconds.
            offsets: As of :meth:`SparsitySpace.spec`.

        Raises:
            ValueError: If none is so fast, or a group is unknown.
        """
        key = total_kept, frozenset((offsets or {}).items())
        if key not in self._found:
            self._found[key] = self._largest(total_kept, offsets)
        return self._found[key]

    def fastest(self) -> int:
        """Nanoseconds of the smallest subnet."""
        return self._time_of(super().spec(self.total_kept(0.0)).counts(self.numel))

    def _largest(self, limit: int, offsets: Mapping[str, float] | None) -> SubnetSpec:
        low, high = self.total_kept(0.0), sum(self.numel.values())
        best = super().spec(low, offsets)
        if self._time_of(best.counts(self.numel)) > limit:
            raise ValueError(f"no subnet takes {limit} ns; the fastest takes {self.fastest()} ns")
        while low < high:
            middle = (low + high + 1) // 2
            spec = super().spec(middle, offsets)
            if self._time_of(spec.counts(self.numel)) <= limit:
                low, best = middle, spec
            else:
                high = middle - 1
        return best
