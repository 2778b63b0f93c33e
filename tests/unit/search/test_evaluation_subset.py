"""Rank correlations against their definitions; subsets that rank as the whole."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from omnisparse.search.evaluation_subset import choose_subset, kendall, spearman

UNITS = np.random.default_rng(1).integers(5, 40, size=80).astype(float)
GROUPS = [size for size in (16, 8, 4) for _ in range(5)]


def tau_b(x: list[float], y: list[float]) -> float:
    """Kendall 1945, by counting pairs."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    same = sum((x[i] - x[j]) * (y[i] - y[j]) > 0 for i, j in pairs)
    opposite = sum((x[i] - x[j]) * (y[i] - y[j]) < 0 for i, j in pairs)
    tied_x = sum(x[i] == x[j] for i, j in pairs)
    tied_y = sum(y[i] == y[j] for i, j in pairs)
    return (same - opposite) / math.sqrt((len(pairs) - tied_x) * (len(pairs) - tied_y))


def test_kendall_counts_pairs() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.integers(0, 6, (2, 9)).astype(float).tolist()
        assert kendall(x, y) == pytest.approx(tau_b(x, y))


def test_spearman_is_the_textbook_formula_without_ties() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.permutation(10).astype(float), generator.permutation(10).astype(float)
        expected = 1 - 6 * float(((x - y) ** 2).sum()) / (10 * 99)
        assert spearman(x**3, np.exp(y)) == pytest.approx(expected)  # ranks only


def test_ties_take_their_mean_rank() -> None:
    assert spearman([1, 2, 2, 3], [1, 3, 3, 4]) == pytest.approx(1.0)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize(("x", "y"), [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_what_cannot_be_ranked_is_none(x: list[float], y: list[float]) -> None:
    assert spearman(x, y) is None
    assert kendall(x, y) is None


def models() -> tuple[np.ndarray, np.ndarray]:
    """15 models of three sizes: each item has a difficulty, an offset per model, and noise.

    The models of a size differ by less than the noise of a few items: chance ranks them wrongly.
    """
    generator = np.random.default_rng(3)
    quality = np.repeat([1.0, 2.0, 4.0], 5) + np.tile(np.linspace(0, 0.1, 5), 3)
    difficulty = generator.lognormal(0, 1, 80)
    skills = generator.normal(0, 0.25, (15, 4)) @ generator.normal(0, 1, (4, 80))
    return (quality[:, None] * difficulty + skills * difficulty) * UNITS, quality


def test_the_subset_ranks_better_than_a_random_one() -> None:
    values, _ = models()
    whole = values.sum(1) / UNITS.sum()

    def within(items: list[int]) -> float:
        part = values[:, items].sum(1) / UNITS[items].sum()
        found = [spearman(whole[i : i + 5], part[i : i + 5]) for i in (0, 5, 10)]
        return float(np.mean([value for value in found if value is not None]))

    subset = choose_subset(values, UNITS, GROUPS, 10)
    assert len(set(subset.items)) == 10
    assert subset.num_items == 80
    generator = np.random.default_rng(0)
    luck = [within(generator.choice(80, 10, replace=False).tolist()) for _ in range(30)]
    assert within(list(subset.items)) > max(0.9, float(np.quantile(luck, 0.9)))


def test_the_reported_correlation_is_of_models_left_out() -> None:
    """Items of pure noise can be chosen to fit any models; what is reported must not be fooled."""
    fitted, reported = [], []
    for seed in range(8):
        noise = np.random.default_rng(seed).normal(10, 1, (6, 200))
        subset = choose_subset(noise, np.ones(200), ["one"] * 6, 10)
        fitted.append(spearman(noise.sum(1), noise[:, list(subset.items)].sum(1)))
        reported.append(subset.spearman)
    assert np.mean(fitted) > 0.9
    assert np.mean(reported) < 0.5


def test_all_items_are_everything() -> None:
    values, _ = models()
    subset = choose_subset(values, UNITS, GROUPS, 500)
    assert subset.items == tuple(range(80))
    assert subset.spearman == pytest.approx(1.0)
    assert subset.kendall == pytest.approx(1.0)
    assert subset.spearman_within == pytest.approx(1.0)


def test_illegal_arguments_are_named() -> None:
    values, _ = models()
    with pytest.raises(ValueError, match="num_items is 0"):
        choose_subset(values, UNITS, GROUPS, 0)
    with pytest.raises(ValueError, match="do not fit"):
        choose_subset(values, UNITS[1:], GROUPS, 3)
    values[2, 3] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        choose_subset(values, UNITS, GROUPS, 3)
