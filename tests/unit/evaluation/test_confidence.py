"""Intervals and probabilities of rates against what is known, above all for few speakers."""

from __future__ import annotations

import numpy as np
import pytest

from omnisparse.evaluation.clusters import clusters_of, speakers_note
from omnisparse.evaluation.confidence import (
    Interval,
    confidence_interval,
    interval_note,
    mean_relative_difference,
    num_informative,
    paired_difference,
)
from omnisparse.evaluation.student import half_width, two_sided_p
from omnisparse.evaluation.wer import ErrorCounts, corpus_wer


def errors(numbers: list[int], words: int = 10) -> list[ErrorCounts]:
    return [ErrorCounts(substitutions=number, words=words) for number in numbers]


def voices(number: int, each: int) -> list[str]:
    return [f"voice {index}" for index in range(number) for _ in range(each)]


@pytest.mark.parametrize(
    ("freedom", "width"),  # printed tables of Student's distribution, two-sided 5 %
    [(1, 12.7062), (2, 4.3027), (5, 2.5706), (9, 2.2622), (30, 2.0423), (120, 1.9799)],
)
def test_student(freedom: float, width: float) -> None:
    assert half_width(freedom) == pytest.approx(width, abs=1e-4)
    assert two_sided_p(width, freedom) == pytest.approx(0.05, abs=1e-5)
    assert two_sided_p(-width, freedom) == two_sided_p(width, freedom)


def test_student_at_its_ends() -> None:
    assert half_width(1e9) == pytest.approx(1.96, abs=1e-3)
    assert two_sided_p(0.0, 7) == 1.0
    assert two_sided_p(float("inf"), 7) == 0.0
    assert two_sided_p(1.0, 1) == pytest.approx(0.5)  # Cauchy: 1 - 2 atan(1) / pi
    assert two_sided_p(3.0, 2) == pytest.approx(1 - 3 / np.sqrt(11))  # t / sqrt(2 + t^2)
    with pytest.raises(ValueError, match="freedom"):
        two_sided_p(1.0, 0)


def test_interval_holds_the_rate_and_has_the_width_of_a_binomial() -> None:
    generator = np.random.default_rng(0)
    counts = errors([int(generator.binomial(8, 0.1)) for _ in range(400)], words=8)
    low, high, method = confidence_interval(counts)
    assert low < corpus_wer(counts) < high
    assert method == "utterances"
    assert interval_note(counts, Interval(low, high, method)) is None
    # A binomial rate of 10 % over 3200 words has a standard error of 0.53 %.
    assert high - low == pytest.approx(2 * 1.96 * 0.53, rel=0.1)
    with_voices = confidence_interval(counts, speakers=voices(40, 10))
    assert with_voices.method == "speakers"
    # The voices do not differ here: the same width, up to Student's 2.02 and chance.
    assert with_voices.high - with_voices.low == pytest.approx(high - low, rel=0.4)


def test_equal_speakers_give_the_t_interval_of_their_mean() -> None:
    """With as many words each, the jackknife of a rate is the textbook error of a mean."""
    numbers = [1, 2, 2, 3, 5, 1, 0, 2]
    first = errors([3] * 8)
    found = paired_difference([first], [errors(numbers)], speakers=voices(8, 1))
    values = 10.0 * (np.array(numbers) - 3)
    error = values.std(ddof=1) / np.sqrt(8)
    assert found.difference == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half_width(7) * error)
    assert found.p_value == pytest.approx(two_sided_p(values.mean() / error, 7))
    split = [count for number in numbers for count in errors([number, 0], words=5)]
    same = [count for _ in numbers for count in errors([3, 0], words=5)]
    parts = paired_difference([same], [split], speakers=voices(8, 2))
    assert parts == found  # how a speaker's words are cut into utterances changes nothing


def test_seeds_add_their_own_spread() -> None:
    base = errors([3, 1, 2, 4, 2, 3, 1, 2, 3, 4])
    worse = errors([one.errors + 1 for one in base])
    speakers = voices(10, 1)
    alone = confidence_interval(base, speakers=speakers)
    equal = confidence_interval(base, base, base, speakers=speakers)
    apart = confidence_interval(base, base, worse, speakers=speakers)
    assert (equal.low, equal.high) == pytest.approx((alone.low, alone.high))
    assert apart.high / apart.low > alone.high / alone.low
    # Rates 25, 25 and 35 %: a standard error of 10 / 3 points, on top of the speakers'.
    only = [ErrorCounts(substitutions=n, words=10) for n in (2, 3) * 200]
    more = [ErrorCounts(substitutions=n, words=10) for n in (3, 4) * 200]
    found = paired_difference([only], [only, only, more])
    assert found.difference == pytest.approx(10 / 3)
    assert found.high - found.difference == pytest.approx(half_width(2) * 10 / 3, rel=0.05)
    assert (found.seeds, found.speakers, found.is_significant) == (1, 0, False)


@pytest.mark.parametrize(("seeds", "number", "starred"), [(3, 10, True), (2, 10, False),
                                                           (3, 9, False)])  # fmt: skip
def test_a_star_needs_three_seeds_and_ten_speakers(seeds: int, number: int, starred: bool) -> None:
    first = [errors([5, 6] * number) for _ in range(seeds)]
    second = [errors([1 + (place == seed) for place in range(2 * number)]) for seed in range(seeds)]
    found = paired_difference(first, second, speakers=voices(number, 2))
    assert found.p_value < 0.05
    assert found.is_significant is starred
    nameless = paired_difference(first, second)
    assert nameless.p_value < 0.05
    assert not nameless.is_significant


def simulate(
    number: int, *, deviation: float, seeds: int = 1, spread: float = 0.0, uneven: float = 0.0,
    named: bool = True, each: int = 2, times: int = 400,
) -> float:  # fmt: skip
    """How often two equal systems are called different at 0.05.

    Each system understands each speaker well or badly (log-normal, the standard deviation of the
    logarithm is ``deviation``), and each of its seeds is good or bad (``spread``).
    """
    generator = np.random.default_rng(0)
    speakers = voices(number, each) if named else None
    found = 0
    for _ in range(times):
        words = np.maximum(20, 320 * np.exp(generator.normal(0, uneven, number))).astype(int)
        words = words.repeat(each)
        systems = []
        for _ in range(2):
            effects = np.exp(generator.normal(0, deviation, number))
            quality = np.exp(generator.normal(0, spread, (seeds, 1)))
            rates = 0.1 * (quality * effects).repeat(each, axis=1)
            systems.append(
                [
                    [
                        ErrorCounts(insertions=int(e), words=int(w))
                        for e, w in zip(row, words, strict=True)
                    ]
                    for row in generator.poisson(rates * words)
                ]
            )
        result = paired_difference(*systems, speakers=speakers)
        found += result.p_value < 0.05
    return found / times


@pytest.mark.parametrize(
    "setting",
    [
        {"number": 10, "deviation": 0.0},
        {"number": 10, "deviation": 0.3},
        {"number": 10, "deviation": 0.3, "uneven": 1.0},
        {"number": 10, "deviation": 0.3, "seeds": 3, "spread": 0.1},
        {"number": 16, "deviation": 0.05, "seeds": 3, "spread": 0.2},
        {"number": 40, "deviation": 0.3},
    ],
)
def test_equal_systems_are_seldom_called_different(setting: dict[str, float]) -> None:
    assert 0.015 < simulate(**setting) <= 0.08


def test_utterances_of_one_speaker_are_not_independent() -> None:
    """What the speakers are for: without their names, equal systems differ far too often."""
    assert simulate(10, deviation=0.3, named=False, each=8) > 0.2


def test_units_of_chance() -> None:
    assert clusters_of(None, 7).unit == "utterances"
    assert clusters_of(voices(4, 2), 8).unit == "utterances"
    found = clusters_of([*voices(5, 2), None, "", None], 13)
    assert (found.unit, found.number) == ("speakers", 6 + 1)
    assert found.sums(np.arange(13)).tolist() == [1, 5, 9, 13, 17, 10 + 12, 11]
    with pytest.raises(ValueError, match="one per utterance"):
        clusters_of(["a"], 2)


def test_notes_on_speakers() -> None:
    assert speakers_note(voices(10, 2)) is None
    assert "names no speaker" in speakers_note(None)
    assert "names no speaker" in speakers_note([None] * 5)
    assert "one speaker" in speakers_note(["anna"] * 5)
    assert "hold for no other voice" in speakers_note(voices(4, 9))
    assert "9 speakers are few (below 10)" in speakers_note(voices(9, 2))
    assert "3 utterances name no speaker" in speakers_note([*voices(12, 2), None, None, None])
    assert speakers_note(["anna"]) is None  # one utterance: another note says enough


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
    assert confidence_interval(counts) == (None, None, None)  # one utterance has all words
    assert confidence_interval([*counts, ErrorCounts(words=8)]).method == "utterances"


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
    """Where all utterances have the same rate, leaving one out says nothing."""
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
        assert interval.method == "utterances"
        note = interval_note(counts[:number], interval)
        assert (note is None) == (number == 20)
        if note:
            assert note == f"{number} utterances are few (below 20): intervals are rough"


def test_one_utterance_has_no_p() -> None:
    first, second = [ErrorCounts(words=8)], [ErrorCounts(deletions=8, words=8)]
    for more in ([], [ErrorCounts()] * 5):
        result = paired_difference([[*first, *more]], [[*second, *more]])
        assert (result.difference, result.low, result.high, result.p_value) == (
            100.0, None, None, None,
        )  # fmt: skip
    relative = mean_relative_difference([([second], [first])])
    assert (relative.difference, relative.p_value) == (-100.0, None)


@pytest.mark.parametrize(("differing", "least"), [(2, 0.5), (3, 0.25), (6, 1 / 32)])
def test_few_utterances_that_differ_prove_little(differing: int, least: float) -> None:
    """No exchange of results between the systems could give less: Fisher's sign flips."""
    first = [ErrorCounts(words=8)] * differing
    second = [ErrorCounts(deletions=1, words=8)] * differing
    result = paired_difference([first], [second])
    assert result.difference == 12.5
    assert (result.low, result.high) == (None, None)  # every utterance says 12.5
    assert result.p_value == pytest.approx(least)
    same = [ErrorCounts(substitutions=i % 3, words=10) for i in range(100)]
    assert paired_difference([[*first, *same]], [[*second, *same]]).p_value >= least


def test_paired_difference_sees_a_small_consistent_gain() -> None:
    generator = np.random.default_rng(1)
    hard = generator.integers(0, 6, size=300)  # utterances differ a lot: wide single intervals
    worse = [ErrorCounts(substitutions=int(h) + 1, words=10) for h in hard]
    better = [ErrorCounts(substitutions=int(h) + int(h % 2), words=10) for h in hard]
    result = paired_difference([worse], [better])
    assert result.difference == pytest.approx(corpus_wer(better) - corpus_wer(worse))
    assert result.low <= result.difference <= result.high < 0
    assert result.p_value < 0.01


def test_paired_difference_of_equal_systems_is_not_significant() -> None:
    counts = [ErrorCounts(substitutions=i % 3, words=10) for i in range(50)]
    result = paired_difference([counts], [counts])
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, None, None, 1.0)


def test_paired_difference_wants_the_same_utterances() -> None:
    with pytest.raises(ValueError, match="same utterances"):
        paired_difference([[ErrorCounts(words=3)]], [[ErrorCounts(words=4)]])


def binomial(rate: float, seed: int, size: int = 300) -> list[ErrorCounts]:
    generator = np.random.default_rng(seed)
    return [ErrorCounts(substitutions=int(generator.binomial(9, rate)), words=9)] + [
        ErrorCounts(substitutions=int(generator.binomial(10, rate)), words=10) for _ in range(size)
    ]


def test_mean_relative_difference_is_the_mean_without_each_unit() -> None:
    pairs = [(binomial(0.2, 1), binomial(0.15, 2)), (binomial(0.1, 3), binomial(0.1, 4))]
    speakers = [*voices(20, 15), "voice 0"]
    result = mean_relative_difference([([a], [b]) for a, b in pairs], speakers=speakers)
    expected = np.mean([100 * (corpus_wer(b) / corpus_wer(a) - 1) for a, b in pairs])
    assert result.difference == pytest.approx(expected)
    means = []
    for left_out in voices(20, 1):
        kept = [
            [[c for c, who in zip(part, speakers, strict=True) if who != left_out] for part in pair]
            for pair in pairs
        ]
        means.append(np.mean([100 * (corpus_wer(b) / corpus_wer(a) - 1) for a, b in kept]))
    error = np.sqrt(19 / 20 * ((np.array(means) - expected) ** 2).sum())
    assert result.high - expected == pytest.approx(half_width(19) * error, rel=1e-4)
    assert expected - result.low == pytest.approx(half_width(19) * error, rel=1e-4)


def test_mean_relative_difference_of_one_pair_has_the_sign_of_the_points() -> None:
    first, second = binomial(0.2, 1), binomial(0.18, 2)
    relative = mean_relative_difference([([first], [second])])
    points = paired_difference([first], [second])
    assert relative.difference == pytest.approx(100 * points.difference / corpus_wer(first))
    assert relative.p_value == pytest.approx(points.p_value, rel=0.5)


def test_seeds_of_a_row_are_the_same_at_every_size() -> None:
    """A good seed is good at all sizes: the mean over sizes does not average it away."""
    base, good = binomial(0.2, 1), binomial(0.1, 2)
    one = mean_relative_difference([([base, base], [base, good])])
    both = mean_relative_difference([([base, base], [base, good])] * 2)
    assert both.high - both.low == pytest.approx(one.high - one.low)
    assert one.seeds == 2


def test_mean_relative_difference_needs_errors_and_the_same_utterances() -> None:
    perfect = [ErrorCounts(words=10)] * 5
    some = [ErrorCounts(substitutions=1, words=10)] * 5
    assert mean_relative_difference([([some], [perfect]), ([perfect], [some])]) is None
    assert mean_relative_difference([([some], [perfect])]).difference == -100.0
    once = errors([1, 0, 0, 0, 0])  # without its first utterance, no relative difference exists
    assert mean_relative_difference([([once], [some])]) is None
    with pytest.raises(ValueError, match="same utterances in each"):
        mean_relative_difference([([some], [some[:-1]])])
    with pytest.raises(ValueError, match="got 0 pairs"):
        mean_relative_difference([])
