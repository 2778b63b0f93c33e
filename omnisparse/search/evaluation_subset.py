"""A small part of the dev set that ranks models as the whole dev set does.

A random part ranks badly, because a few hard utterances decide. Here the part is chosen from models
that were measured once on the whole set, so that it ranks them alike. The reported quality is how
well it ranks a model that was *not* used to choose it.

Legend: M models, N items (an item is an utterance, or a few that are recognised together).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_FEWEST_TO_RANK = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """Items to evaluate on, and how well they rank models.

    Attributes:
        items: Chosen items, ascending.
        num_items: Number of items to choose from.
        spearman: Rank correlation, over the models, between the rate on the whole set and the
            rate on a subset chosen without that model; None where nothing can be ranked.
        kendall: The same as Kendall's tau-b.
        spearman_within: Mean over groups (models of one size) of the Spearman correlation within
            the group. This is harder, because models of different sizes are easy to rank.
    """

    items: tuple[int, ...]
    num_items: int
    spearman: float | None
    kendall: float | None
    spearman_within: float | None


def choose_subset(
    values: FloatArray, units: FloatArray, groups: Sequence[Hashable], num_items: int
) -> Subset:
    """Choose items on which models differ from each other as they do on all items.

    Args:
        values: ``[M, N]`` losses or errors of M models on N items, finite.
        units: ``[N]`` tokens or words of the items; a model's rate is the sum of its values over
            the sum of units.
        groups: Group of each model, e.g. its size; models are compared within groups.
        num_items: Number of items to choose, at least 1.

    Returns:
        The subset; all items if there are at most ``num_items``.

    Raises:
        ValueError: If the shapes do not fit, a value is not finite, or ``num_items`` is below 1.

    Source: ShrinkML (Dudziak et al. 2019, arXiv:1907.03540, abstract) uses "a representative but
    small data set"; how it was built is not readable there. The greedy choice is ours.
    """
    values = np.asarray(values, dtype=np.float64)
    units = np.asarray(units, dtype=np.float64)
    if values.ndim != 2 or units.shape != values.shape[1:] or len(groups) != len(values):
        raise ValueError(
            f"values {values.shape}, units {units.shape} and {len(groups)} groups do not fit; "
            "expected [M, N], [N] and M"
        )
    if not np.isfinite(values).all():
        raise ValueError("values contains numbers that are not finite")
    if num_items < 1:
        raise ValueError(f"num_items is {num_items}; it must be at least 1")
    whole = values.sum(1) / units.sum()
    predicted = whole.copy()  # unchanged if there are too few models to rank
    ranked = len(values) if len(values) >= _FEWEST_TO_RANK else 0
    for model in range(ranked):
        others = [index for index in range(len(values)) if index != model]
        items = _choose(values[others], units, [groups[i] for i in others], num_items)
        predicted[model] = values[model, items].sum() / units[items].sum()
    return Subset(
        items=tuple(sorted(_choose(values, units, groups, num_items))),
        num_items=values.shape[1],
        spearman=spearman(whole, predicted),
        kendall=kendall(whole, predicted),
        spearman_within=_within(whole, predicted, groups),
    )


def _choose(
    values: FloatArray, units: FloatArray, groups: Sequence[Hashable], num_items: int
) -> list[int]:
    """Greedily add the item that makes differences within groups most like those on all items."""
    count = values.shape[1]
    if num_items >= count:
        return list(range(count))
    centre = _centring(groups)
    wanted = centre @ (values.sum(1) / units.sum())
    chosen: list[int] = []
    total, weight = np.zeros(len(values)), 0.0
    free = np.ones(count, dtype=bool)
    for _ in range(num_items):
        rates = (total[:, None] + values) / (weight + units)
        misfit = np.square(centre @ rates - wanted[:, None]).sum(0)
        misfit[~free] = np.inf
        best = int(misfit.argmin())
        chosen.append(best)
        free[best] = False
        total, weight = total + values[:, best], weight + units[best]
    return chosen


def _centring(groups: Sequence[Hashable]) -> FloatArray:
    """``[M, M]`` matrix that subtracts the group's mean from each model, if the group has two."""
    same = np.array([[a == b for b in groups] for a in groups], dtype=np.float64)
    sizes = same.sum(1, keepdims=True)
    centring: FloatArray = np.eye(len(groups)) - np.where(sizes > 1, same / sizes, 0.0)
    return centring


def _within(first: FloatArray, second: FloatArray, groups: Sequence[Hashable]) -> float | None:
    found = []
    for group in dict.fromkeys(groups):
        members = [index for index, other in enumerate(groups) if other == group]
        value = spearman(first[members], second[members])
        if value is not None:
            found.append(value)
    return sum(found) / len(found) if found else None


def spearman(
    first: Sequence[float] | FloatArray, second: Sequence[float] | FloatArray
) -> float | None:
    """Spearman's rank correlation; tied values get their mean rank.

    Returns:
        In [-1, 1]; None for fewer than three pairs or where one side is constant.

    Source: Spearman 1904: Pearson's correlation of the ranks.
    """
    return _correlation(first, second, lambda x: _ranks(x) - (len(x) - 1) / 2)


def kendall(
    first: Sequence[float] | FloatArray, second: Sequence[float] | FloatArray
) -> float | None:
    """Kendall's tau-b: concordant minus discordant pairs, corrected for ties.

    Returns:
        In [-1, 1]; None for fewer than three pairs or where one side is constant.

    Source: Kendall 1945.
    """
    return _correlation(first, second, lambda x: np.sign(x[:, None] - x[None, :]).ravel())


def _correlation(
    first: Sequence[float] | FloatArray,
    second: Sequence[float] | FloatArray,
    features: Callable[[FloatArray], FloatArray],
) -> float | None:
    """Cosine of two vectors of zero-mean features; both coefficients have this form."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ in length")
    if len(a) < _FEWEST_TO_RANK:
        return None
    x, y = features(a), features(b)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else None


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks from 0; tied values get their mean rank."""
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    ranks: FloatArray = below + (equal - 1) / 2
    return ranks
