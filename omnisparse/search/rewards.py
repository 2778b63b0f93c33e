"""What a rank search is paid for: rewards in the style of ShrinkML, by name.

The paper compares reward and punishment functions; its formulas are not readable to us, so these
are ours (a documented choice): an error to be small, a size to be small, a limit of either.

Legend: e error (a word error rate as a share, or a loss), z parameters, z0 those of the dense net.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from omnisparse.errors import NonNegativeFloat, Range, UsageError, check_ranges

RewardKind = Literal["walled", "weighted", "thresholded", "amc"]
Punishment = Literal["constant", "linear", "distance"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """How an error and a size become one number; larger is better."""

    kind: RewardKind = "walled"
    """``walled``: ``-e``, the budget being held by the wall. ``weighted``: ``-e - w z / z0``.
    ``thresholded``: ``z0 / z`` where e is at most ``limit``, a punishment where it is not.
    ``amc``: ``-e log z`` (He et al. 2018, arXiv:1802.03494, its reward for accuracy and FLOPs)."""
    weight: NonNegativeFloat = 0.5
    """Price w of the size."""
    limit: NonNegativeFloat = 0.1
    """Largest error that ``thresholded`` accepts."""
    punishment: Punishment = "linear"
    """Beyond the limit: ``constant`` -1; ``linear`` ``-(e - limit) / limit``; ``distance`` the same
    less the speed-up that was given away for it, ``-(e - limit) / limit - z / z0``."""
    cap: Annotated[float, Range(above=0)] = 1e6
    """Errors above this count as this (1 for word error rates, which can be larger)."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_ranges(self, UsageError)
        for name, legal in (("kind", RewardKind), ("punishment", Punishment)):
            if getattr(self, name) not in get_args(legal):
                raise UsageError(
                    f"reward {name} is {getattr(self, name)!r}; legal: {', '.join(get_args(legal))}"
                )
        if self.kind == "thresholded" and self.limit == 0:
            raise UsageError("limit is 0; a thresholded reward needs one above 0")

    def __call__(self, error: float, parameters: int, dense: int) -> float:
        """The reward of one candidate.

        Args:
            error: e; not a number counts as the cap.
            parameters: z.
            dense: z0.
        """
        error = self.cap if math.isnan(error) else min(error, self.cap)
        share = parameters / dense
        if self.kind == "walled":
            return -error
        if self.kind == "weighted":
            return -error - self.weight * share
        if self.kind == "amc":
            return -error * math.log(parameters)
        if error <= self.limit:
            return 1 / share
        excess = (error - self.limit) / self.limit
        return {"constant": -1.0, "linear": -excess, "distance": -excess - share}[self.punishment]
