"""Values of subnets on the items of a dev set; each is measured at most once and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from omnisparse.search.journal import Journal, key_of
from omnisparse.sparsity.space import SubnetSpec

FloatArray = npt.NDArray[np.float64]

MeasureItems = Callable[[SubnetSpec, Sequence[int]], Sequence[float]]
"""Value (summed loss, errors) of a subnet on each of the given items."""


class ItemScores:
    """Rates of subnets on items: the sum of their values over the sum of the items' units.

    Args:
        measure: Measures a subnet; the expensive part.
        units: ``[N]`` tokens or words of every item.
        journal: Stores the measured values, also for later processes.

    Attributes:
        num_measured: Calls of ``measure`` that this process needed.
    """

    def __init__(self, measure: MeasureItems, units: Sequence[float], journal: Journal) -> None:
        self.units: FloatArray = np.asarray(units, dtype=np.float64)
        self.num_measured = 0
        self._measure, self._journal = measure, journal

    def values(self, spec: SubnetSpec, items: Sequence[int] | None = None) -> FloatArray:
        """``[len(items)]`` values; of all items by default."""
        everything = list(range(len(self.units)))
        chosen = everything if items is None else list(items)
        whole = self._journal.get(f"{key_of(spec)} all")
        if whole is not None:
            return np.asarray(whole, dtype=np.float64)[chosen]
        question = f"{key_of(spec)} {_name(chosen) if chosen != everything else 'all'}"

        def measure() -> list[float]:
            found = [float(value) for value in self._measure(spec, chosen)]
            self.num_measured += 1
            return found

        return np.asarray(self._journal.ask(question, measure), dtype=np.float64)

    def rate(self, spec: SubnetSpec, items: Sequence[int] | None = None) -> float:
        """Value per unit on the items; on all items by default."""
        chosen = range(len(self.units)) if items is None else items
        return float(self.values(spec, items).sum() / self.units[list(chosen)].sum())


def _name(items: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:12]
