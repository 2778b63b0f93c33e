"""Intervals and probabilities of rates against what is known, above all for few utterances."""

from __future__ import annotations

import numpy as np
import pytest

from omnisparse.evaluation.confidence import (
    Interval,
    confidence_interval,
    interval_note,
    mean_relative_difference,
    num_informative,
    paired_bootstrap,
)
from omnisparse.evaluation.wer import ErrorCounts, corpus_wer


def test_bootstrap_interval_is_deterministic_and_holds_the_rate() -> None:
    generator = np.random.default_rng(0)
    counts = [
        ErrorCounts(substitutions=int(generator.binomial(8, 0.1)), words=8) for _ in range(400)
    ]
    low, high, method = confidence_interval(counts)
    assert low < corpus_wer(counts) < high
    assert (low, high, method) == confidence_interval(counts)
    assert method == "bootstrap"
    assert interval_note(counts, Interval(low, high, method)) is None
    # A binomial rate of 10 % over 3200 words has a standard error of 0.53 %.
    assert high - low == pytest.approx(2 * 1.96 * 0.53, rel=0.2)


def test_one_utterance_has_no_interval() -> None:
    silence = [ErrorCounts()] * 30  # recognised as silence: no rate depends on it
    for counts in ([ErrorCounts(substitutions=1, words=8)], [ErrorCounts(words=8)]):
        for more in ([], silence):
            interval = confidence_interval([*counts, *more])
            assert interval == (None, None, None)
            note = interval_note([*counts, *more], interval)
            assert note == "1 utterance with words: no interval and no p-value can be given"


def test_silence_with_insertions_counts_as_an_utterance() -> None:
    counts = [ErrorCounts(words=8), ErrorCounts(insertions=2)]
    assert num_informative([*counts, ErrorCounts()]) == 2
    assert confidence_interval(counts).method == "bootstrap"


@pytest.mark.parametrize(
    ("errors", "words", "number", "low", "high"),
    [  # scipy.stats.binomtest(errors * number, words * number).proportion_ci(method="wilson")
        (0, 10, 5, 0.0, 7.134760),
        (10, 10, 5, 92.865240, 100.0),
        (1, 10, 6, 4.664283, 20.149465),
        (2, 8, 2, 10.182067, 49.498317),
    ],
)
def test_without_spread_the_interval_is_wilsons(
    errors: int, words: int, number: int, low: float, high: float
) -> None:
    """Where all utterances have the same rate, every resample has: a bootstrap says nothing."""
    counts = [ErrorCounts(deletions=errors, words=words)] * number
    interval = confidence_interval(counts)
    assert interval[:2] == pytest.approx((low, high), abs=1e-5)
    assert interval.method == "wilson"
    note = interval_note(counts, interval)
    assert f"{number} utterances are few (below 20)" in note
    assert f"Wilson's for {words * number} words" in note


def test_a_perfect_system_is_not_certain() -> None:
    for number in (2, 10, 400):
        low, high, method = confidence_interval([ErrorCounts(words=5)] * number)
        assert low == 0.0
        assert high == pytest.approx(100 * 3.8415 / (5 * number + 3.8415), rel=1e-4)
        assert method == "wilson"


def test_the_same_rate_above_all_words_has_no_interval() -> None:
    counts = [ErrorCounts(substitutions=2, insertions=1, words=2)] * 3
    interval = confidence_interval(counts)
    assert interval == (None, None, None)
    assert "above 100 %" in interval_note(counts, interval)


def test_few_utterances_are_told() -> None:
    counts = [ErrorCounts(substitutions=i % 2, words=5) for i in range(20)]
    for number in (2, 19, 20):
        interval = confidence_interval(counts[:number])
        assert interval.method == "bootstrap"
        note = interval_note(counts[:number], interval)
        assert (note is None) == (number == 20)
        if note:
            assert note == f"{number} utterances are few (below 20): intervals are rough"


def test_one_utterance_has_no_p() -> None:
    first, second = [ErrorCounts(words=8)], [ErrorCounts(deletions=8, words=8)]
    for more in ([], [ErrorCounts()] * 5):
        result = paired_bootstrap([*first, *more], [*second, *more])
        assert (result.difference, result.low, result.high, result.p_value) == (
            100.0, None, None, None,
        )  # fmt: skip
    relative = mean_relative_difference([(second, first)])
    assert (relative.difference, relative.p_value) == (-100.0, None)


@pytest.mark.parametrize(("differing", "least"), [(2, 0.5), (3, 0.25), (6, 1 / 32)])
def test_few_utterances_that_differ_prove_little(differing: int, least: float) -> None:
    """No exchange of results between the systems could give less: Fisher's sign flips."""
    first = [ErrorCounts(words=8)] * differing
    second = [ErrorCounts(deletions=1, words=8)] * differing
    result = paired_bootstrap(first, second)
    assert result.difference == 12.5
    assert (result.low, result.high) == (None, None)  # every resample says 12.5
    assert result.p_value == pytest.approx(least)
    same = [ErrorCounts(substitutions=i % 3, words=10) for i in range(100)]
    assert paired_bootstrap([*first, *same], [*second, *same]).p_value >= least


def test_bootstrap_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="samples"):
        confidence_interval([ErrorCounts(words=5)], samples=0)


def test_paired_bootstrap_sees_a_small_consistent_gain() -> None:
    generator = np.random.default_rng(1)
    hard = generator.integers(0, 6, size=300)  # utterances differ a lot: wide single intervals
    worse = [ErrorCounts(substitutions=int(h) + 1, words=10) for h in hard]
    better = [ErrorCounts(substitutions=int(h) + int(h % 2), words=10) for h in hard]
    result = paired_bootstrap(worse, better)
    assert result.difference == pytest.approx(corpus_wer(better) - corpus_wer(worse))
    assert result.low <= result.difference <= result.high < 0
    assert result.p_value < 0.01


def test_paired_bootstrap_of_equal_systems_is_not_significant() -> None:
    counts = [ErrorCounts(substitutions=i % 3, words=10) for i in range(50)]
    result = paired_bootstrap(counts, counts)
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, None, None, 1.0)


def test_paired_bootstrap_wants_the_same_utterances() -> None:
    with pytest.raises(ValueError, match="counts_b"):
        paired_bootstrap([ErrorCounts(words=3)], [ErrorCounts(words=4)])


def binomial(rate: float, seed: int, size: int = 300) -> list[ErrorCounts]:
    generator = np.random.default_rng(seed)
    return [ErrorCounts(substitutions=int(generator.binomial(9, rate)), words=9)] + [
        ErrorCounts(substitutions=int(generator.binomial(10, rate)), words=10) for _ in range(size)
    ]


def test_mean_relative_difference_is_the_mean_over_the_same_resampled_utterances() -> None:
    pairs = [(binomial(0.2, 1), binomial(0.15, 2)), (binomial(0.1, 3), binomial(0.1, 4))]
    result = mean_relative_difference(pairs, samples=200)
    expected = np.mean([100 * (corpus_wer(b) / corpus_wer(a) - 1) for a, b in pairs])
    assert result.difference == pytest.approx(expected)
    generator, means = np.random.default_rng(0), []
    for _ in range(200):
        drawn = generator.integers(301, size=301)
        rates = [[corpus_wer([c[i] for i in drawn]) for c in pair] for pair in pairs]
        means.append(np.mean([100 * (b - a) / a for a, b in rates]))
    assert (result.low, result.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert result.p_value == pytest.approx(2 * (sum(mean >= 0 for mean in means) + 1) / 201)


def test_mean_relative_difference_of_one_pair_has_the_sign_and_p_of_the_points() -> None:
    first, second = binomial(0.2, 1), binomial(0.18, 2)
    relative, points = mean_relative_difference([(first, second)]), paired_bootstrap(first, second)
    assert relative.p_value == points.p_value
    assert relative.difference == pytest.approx(100 * points.difference / corpus_wer(first))


def test_mean_relative_difference_needs_errors_and_the_same_utterances() -> None:
    perfect = [ErrorCounts(words=10)] * 5
    some = [ErrorCounts(substitutions=1, words=10)] * 5
    assert mean_relative_difference([(some, perfect), (perfect, some)]) is None
    assert mean_relative_difference([(some, perfect)]).difference == -100.0
    with pytest.raises(ValueError, match="same utterances in each, got 1"):
        mean_relative_difference([(some, some[:-1])])
    with pytest.raises(ValueError, match="got 0 pairs"):
        mean_relative_difference([])
