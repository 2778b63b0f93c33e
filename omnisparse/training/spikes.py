"""Spikes of the loss: when a run goes back to a checkpoint, and how often it may.

Source: Chowdhery et al. 2022 (PaLM), section 5.1: restart from a checkpoint before the spike and
skip the batches since; the same batches with other weights make none.
Deviation: a spike is found by a rule instead of by eye.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

_REMEMBERED = 5
_NEEDED = 3
_DENSE = "loss/dense"


class SpikeWatch:
    """Judges the mean of the dense net's loss over each line of metrics, or of the one that trains.

    All processes see the same means, so they decide alike.

    Args:
        factor: A mean above this multiple of the median of the last five is a spike; 0 for never.
        most: Spikes at which the run goes back.
    """

    def __init__(self, factor: float, most: int) -> None:
        self.factor, self.most = factor, most
        self.rollbacks = 0
        self._recent: dict[str, list[float]] = {}

    @property
    def is_on(self) -> bool:
        """Whether it judges at all."""
        return self.factor > 0

    def is_spike(self, metrics: Mapping[str, float]) -> bool:
        """Judge one line of metrics; a mean that is none is remembered."""
        names = [name for name in metrics if name.startswith("loss/")]
        if not self.is_on or not names:
            return False
        # A method may train another net at each step: a net is compared with itself.
        name = _DENSE if _DENSE in names else names[0]
        known, loss = self._recent.get(name, []), metrics[name]
        if len(known) >= _NEEDED and loss > self.factor * statistics.median(known):
            return True
        self._recent[name] = [*known, loss][-_REMEMBERED:]
        return False

    def go_back(self, step: int, to: int) -> str:
        """Count one more; the line to tell."""
        self.rollbacks += 1
        return (
            f"the loss has a spike before step {step}: back to step {to}, without the batches "
            f"since ({self.rollbacks} of at most {self.most} times)"
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; empty where it does not judge."""
        return {"rollbacks": self.rollbacks, "recent": dict(self._recent)} if self.is_on else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what a checkpoint holds."""
        self.rollbacks = int(state.get("rollbacks", 0))
        self.forget_since(state)

    def forget_since(self, state: Mapping[str, Any]) -> None:
        """Put back the means that a checkpoint holds, but not its count."""
        recent = state.get("recent", {})
        if not isinstance(recent, Mapping):  # a checkpoint from before December 2026
            recent = {_DENSE: recent}
        self._recent = {name: [float(value) for value in values] for name, values in recent.items()}
