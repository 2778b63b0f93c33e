"""Compression by low rank in several rounds: search, retrain, search again.

Each round multiplies the factors out, searches ranks for its share of the compression with the
policy of the round before, and retrains. So it goes on where one search in the dense net finds
nothing acceptable any more. Its control is ``rank_search``: one round with as many evaluations and
steps.

In the style of Mehrotra et al. 2020 (arXiv:2008.02897), "Iterative Compression of End-to-End ASR
using AutoML". Only the abstract was readable; ours, by choice:

Deviation: sizes in equal ratios, on the weights that may be factored; most of the steps and
evaluations in the last round, which alone trains the net that is left; one decay of the learning
rate over all rounds; a rank never rises again; a round whose word error rate on the dev split is
above the tolerance is thrown away, and the next aims at half its step (in the logarithm of the
size). The last round always aims at the target, so the result has the size that was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from omnisparse.errors import NonNegativeFloat, NonNegativeInt, PositiveInt, Share
from omnisparse.methods.rank_search import RankFields


@dataclass(frozen=True, kw_only=True, slots=True)
class IterativeConfig(RankFields):
    """Size, rounds, and what they may cost."""

    kind: Literal["iterative"] = "iterative"
    """Selects this method."""
    rounds: PositiveInt = 3
    """Rounds that are planned."""
    last_share: Share = 0.7
    """Share of the steps and of the evaluations that the last round takes; those before take equal
    parts of the rest."""
    one_decay: bool = True
    """Whether the learning rate falls once over all rounds; otherwise in each from its peak."""
    tolerance: NonNegativeFloat = 9.0
    """A round is accepted up to a word error rate on the dev split that is above the dense net's by
    this share of it. Not too small: a tenth of a low rate is one word of a small split, the net of
    a round is not trained to the end, and its steps are lost if it is thrown away."""
    halvings: NonNegativeInt = 2
    """Rounds more than planned, at most, after rounds that were not accepted."""


@dataclass(slots=True)
class Rounds:
    """Sizes of the rounds of one compression, as shares of the weights that may be factored.

    Attributes:
        target: Share at the end, in (0, 1).
        planned: Rounds if all are accepted.
        spare: Rounds more, at most.
        reached: Share of the last accepted round; 1 before the first.
        begun: Rounds that were asked for.
    """

    target: float
    planned: int
    spare: int
    reached: float = 1.0
    begun: int = 0
    step: float = field(init=False)

    def __post_init__(self) -> None:
        """The first step: equal ratios."""
        self.step = self.target ** (1 / self.planned)

    def next(self) -> tuple[float, bool]:
        """The share that the next round aims at, and whether it is the last."""
        self.begun += 1
        wanted = self.reached * self.step
        last = wanted <= self.target * (1 + 1e-9) or self.begun == self.planned + self.spare
        return (self.target, True) if last else (wanted, False)

    def accept(self, share: float) -> None:
        """The round that aimed at ``share`` is good."""
        self.reached = share

    def halve(self) -> None:
        """It is not: the next step is half as long, in the logarithm."""
        self.step = math.sqrt(self.step)
