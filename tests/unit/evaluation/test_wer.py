"""Word errors against jiwer and brute force; intervals against what is known of them."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnisparse.evaluation.wer import (
    ErrorCounts,
    bootstrap_interval,
    corpus_wer,
    mean_relative_difference,
    paired_bootstrap,
    total_errors,
    word_errors,
)

sentences = st.lists(st.sampled_from(["turn", "on", "the", "light", "off"]), max_size=6).map(
    " ".join
)


def _edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance by the textbook table."""
    row = list(range(len(hypothesis) + 1))
    for i, ref_word in enumerate(reference, start=1):
        previous, row = row, [i]
        for j, hyp_word in enumerate(hypothesis, start=1):
            row.append(
                min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (ref_word != hyp_word))
            )
    return row[-1]


@pytest.mark.parametrize("space", ["\t", "\n", "\u00a0", "\u3000", "  "])
def test_any_whitespace_separates_words(space: str) -> None:
    for texts in ([f"a{space}b"], ["a b"]), (["a b"], [f"a{space}b"]):
        (count,) = word_errors(*texts)
        assert (count.errors, count.words) == (0, 2)


@settings(deadline=None)
@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=8))
def test_word_errors_are_minimal_and_add_up(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = zip(*pairs, strict=True)
    for (reference, hypothesis), count in zip(
        pairs, word_errors(references, hypotheses), strict=True
    ):
        assert count.errors == _edit_distance(reference.split(), hypothesis.split())
        assert count.words == len(reference.split())
        assert count.words - count.deletions + count.insertions == len(hypothesis.split())


@settings(deadline=None)
@given(st.lists(st.tuples(sentences.filter(bool), sentences), min_size=1, max_size=8))
def test_corpus_wer_is_jiwers(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    expected = 100 * jiwer.wer(references, hypotheses)
    assert corpus_wer(word_errors(references, hypotheses)) == pytest.approx(expected)


def test_total_adds_every_kind() -> None:
    counts = word_errors(["a b c", "a b", "a"], ["a x c", "a", "a b b"])
    assert total_errors(counts) == ErrorCounts(substitutions=1, deletions=1, insertions=2, words=6)


def test_empty_reference_counts_only_insertions() -> None:
    counts = word_errors(["", "play music"], ["um yes", "play music"])
    assert counts[0] == ErrorCounts(insertions=2)
    assert corpus_wer(counts) == pytest.approx(100.0)


def test_no_word_at_all_has_no_rate() -> None:
    with pytest.raises(ValueError, match="not one word"):
        corpus_wer(word_errors([""], ["a"]))
    with pytest.raises(ValueError, match="not one word"):
        bootstrap_interval([])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="hypotheses"):
        word_errors(["a"], [])


def test_bootstrap_interval_is_deterministic_and_holds_the_rate() -> None:
    generator = np.random.default_rng(0)
    counts = [
        ErrorCounts(substitutions=int(generator.binomial(8, 0.1)), words=8) for _ in range(400)
    ]
    low, high = bootstrap_interval(counts)
    assert low < corpus_wer(counts) < high
    assert (low, high) == bootstrap_interval(counts)
    # A binomial rate of 10 % over 3200 words has a standard error of 0.53 %.
    assert high - low == pytest.approx(2 * 1.96 * 0.53, rel=0.2)


def test_bootstrap_interval_of_a_perfect_system_is_zero() -> None:
    assert bootstrap_interval([ErrorCounts(words=5)] * 10) == (0.0, 0.0)


def test_bootstrap_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="samples"):
        bootstrap_interval([ErrorCounts(words=5)], samples=0)


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
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


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
