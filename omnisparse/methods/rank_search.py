"""A factored net whose ranks a search chose in the trained dense net, retrained or not.

In the style of ShrinkML (Dudziak et al. 2019, arXiv:1907.03540), which reports both: the search
alone, and the search as the source of a start for retraining. Only the abstract was readable.

Deviation: see :mod:`omnisparse.search.controller`. Candidates are measured without retraining; what
was found is then retrained for all steps of ``training``. The controls (other searches, one ratio
for all matrices, equal energy) are retrained for just as many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from omnisparse.errors import NonNegativeFloat, PositiveFloat, PositiveInt, check_ranges
from omnisparse.sparsity.sizes import parse_count

Controller = Literal["rl", "random", "tpe", "nsga2", "uniform", "energy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFields:
    """What every method that searches ranks is told: the size, the search, the retraining."""

    size: str | int = "25%"
    """Parameters of the last net: ``16M``, a share of the dense net's, or ``5x`` for a fifth of the
    weights that may be factored."""
    controller: Literal["rl", "random", "tpe", "nsga2", "uniform", "energy"] = "rl"
    """What chooses the ranks: reinforcement learning; a control with as many evaluations; one ratio
    for all matrices, or the same share of the squared singular values in each."""
    scheme: Literal["stacked", "per_gate", "joint"] = "stacked"
    """What a product is of in an LSTM layer: all gates of a matrix, each gate, or the recurrent
    matrix and the input matrix of the next layer, which then share a projection."""
    evaluations: PositiveInt = 200
    """Candidates that are measured, over all planned rounds."""
    objective: Literal["loss", "wer"] = "loss"
    """Error of a candidate: the label loss per token, or word errors per word (slower)."""
    utterances: PositiveInt = 100
    """Utterances of the dev split on which candidates are measured, about."""
    teacher: str | None = None
    """Run directory of the dense net; null trains it first, with the whole ``training``."""
    distillation_weight: NonNegativeFloat = 0.0
    """Weight of the divergence from the dense net while retraining; 0 learns from labels alone."""
    label_weight: NonNegativeFloat = 1.0
    """Weight of the loss on the transcript beside that."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of each retraining; null takes that of ``training``."""

    def __post_init__(self) -> None:
        """Check ranges; the size is checked against the model when it is trained."""
        _check_size(self.size)
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSearchMethodConfig(RankFields):
    """Size, search and retraining of a factored net."""

    kind: Literal["rank_search"] = "rank_search"
    """Selects this method."""
    retrain: bool = True
    """Whether the factored net is trained for the steps of ``training``."""


def _check_size(size: str | int) -> None:
    """Refuse what is no size of a factored net.

    Raises:
        UsageError: Naming the legal forms.
    """
    if not re.fullmatch(r"\d+(\.\d+)?x", str(size)):
        parse_count(size)
