"""What ranks cost in measured time: a matrix is one dense product, or one after the other."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from omnisparse.sparsity.decomposition import RankBudget


@dataclass(frozen=True, slots=True)
class TimedBudget(RankBudget):
    """Nanoseconds of the products of a net's matrices, each with one vector.

    Attributes:
        times: For each matrix, ``(rank, nanoseconds)`` of its factors, ranks rising.
        whole: Nanoseconds of each matrix as it is.
    """

    times: Mapping[str, tuple[tuple[int, int], ...]]
    whole: Mapping[str, int]
    unit: ClassVar[str] = "ns"

    @property
    def dense(self) -> int:
        """Nanoseconds without factors."""
        return self.fixed + sum(self.whole.values())

    def cost(self, name: str, rank: int | None) -> int:
        """Nanoseconds of one matrix; between measured ranks they are interpolated.

        A longer time of a smaller rank is noise: times never fall as the rank rises.
        """
        if rank is None:
            return self.whole[name]
        ranks = [known for known, _ in self.times[name]]
        rising: list[int] = []
        for _, time in self.times[name]:
            rising.append(max(time, rising[-1] if rising else 0))
        after = bisect.bisect_left(ranks, rank)
        if after == len(ranks):
            return rising[-1] if ranks[-1] >= rank else round(rising[-1] * rank / ranks[-1])
        if ranks[after] == rank or after == 0:
            return rising[after]
        left, right = ranks[after - 1], ranks[after]
        share = (rank - left) / (right - left)
        return round(rising[after - 1] + share * (rising[after] - rising[after - 1]))
