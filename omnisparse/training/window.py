"""What a training logs next: means over the steps since the last line, read from the device late.

Every value that is read while a step runs makes the device wait for the host. Losses stay tensors
until they are logged, or saved with a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Sums = dict[str, tuple[float, int]]
"""Total and number of the values of each name."""


class Pending(NamedTuple):
    """A loss of one step, still on its device."""

    name: str
    """Key that it is logged under."""

    value: Tensor
    """Scalar: the loss summed over all processes."""

    num_units: Tensor
    """Scalar: what it is divided by; 0 where no utterance of the step had this loss."""


class Window:
    """Means since the last line."""

    def __init__(self) -> None:
        self._sums: Sums = {}
        self._pending: list[Pending] = []

    def add(self, losses: list[Pending], numbers: Mapping[str, float]) -> None:
        """Add a step: its losses, unread, and what is known of it as numbers."""
        self._pending += losses
        for name, number in numbers.items():
            self._count(name, number)

    def sums(self) -> Sums:
        """Totals and numbers of all values so far; reads what is pending, in one go."""
        if self._pending:
            columns = ([loss.value for loss in self._pending], [u.num_units for u in self._pending])
            values, units = (torch.stack(column).tolist() for column in columns)
            for loss, value, count in zip(self._pending, values, units, strict=True):
                if count > 0:
                    self._count(loss.name, value / count)
            self._pending = []
        return dict(self._sums)

    def flush(self) -> dict[str, float]:
        """Means of all values, which are forgotten then."""
        means = {name: total / count for name, (total, count) in self.sums().items()}
        self._sums = {}
        return means

    def restore(self, sums: Mapping[str, tuple[float, int]]) -> None:
        """Put back what :meth:`sums` gave."""
        self._pending = []
        self._sums = {name: (total, count) for name, (total, count) in sums.items()}

    def _count(self, name: str, value: float) -> None:
        """A skipped step's values are no numbers to average."""
        if math.isfinite(value):
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
