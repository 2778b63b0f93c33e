"""Confidence intervals of a word error rate, and of the difference between two rates.

Two methods give 95 % intervals. Usually utterances are resampled (bootstrap). If every resample has
the same rate, the bootstrap gives no information; then Wilson's score interval is used, above all
for a test without any error. One utterance has no interval and no p-value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from omnisparse.evaluation.wer import ErrorCounts, corpus_wer, total_errors

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

NUM_BOOTSTRAP_SAMPLES = 1000
CONFIDENCE_PERCENT = 95.0
FEW_UTTERANCES = 20
"""With fewer utterances, a bootstrap interval is too narrow, and the user is told."""

_Z = 1.959963984540054
"""95 % of a normal distribution lie within this number of standard deviations."""
_SAME = 1e-9
"""Rates in percent that differ by less count as equal."""


class Interval(NamedTuple):
    """A 95 % interval of a rate in percent; the ends are None if there is no interval."""

    low: float | None
    high: float | None
    method: Literal["bootstrap", "wilson"] | None


NO_INTERVAL = Interval(None, None, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """The difference of two systems on the same utterances, in points of WER or relative in %."""

    difference: float
    """Second system minus first system: negative if the second is better."""

    low: float | None
    """Lower end of the 95 % interval of the difference; None where there is no interval."""

    high: float | None
    """Upper end of the 95 % interval of the difference; None where there is no interval."""

    p_value: float | None
    """Two-sided p-value in (0, 1]: the probability that equal systems differ at least this much;
    None for one utterance."""


def confidence_interval(
    counts: Sequence[ErrorCounts], *, samples: int = NUM_BOOTSTRAP_SAMPLES, seed: int = 0
) -> Interval:
    """95 % interval of the corpus WER.

    Utterances, not words, are resampled with replacement, because errors within one utterance
    depend on each other. If every resample has the same rate (no utterance has an error, or all
    have the same share of errors), the interval is Wilson's, which treats each word as an
    independent trial: without an error in N words its upper end is ``3.84 / (N + 3.84)``. Words of
    one utterance are not independent, so this upper end is too low.

    Args:
        counts: Errors per utterance; of words or of characters.
        samples: Number of resampled corpora.
        seed: Seed of the resampling; the interval is a function of (counts, samples, seed).

    Returns:
        Lower and upper end, in percent, and the method; all None if fewer than two utterances have
        words or errors, or if all have the same rate above 100 %.

    Raises:
        ValueError: If there is no reference word, or ``samples`` is below 1.

    Source: Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance
        evaluation", section 3. Wilson 1927, "Probable inference, the law of succession, and
        statistical inference"; recommended for small samples and rates near 0 by Brown, Cai &
        DasGupta 2001, "Interval estimation for a binomial proportion", section 4.1.
    """
    corpus_wer(counts)  # raises if no rate exists
    errors = np.array([[count.errors for count in counts]])
    words = np.array([count.words for count in counts])
    rates = _resampled_rates(errors, words, samples=samples, seed=seed)[0]
    if num_informative(counts) < 2:
        return NO_INTERVAL
    if np.ptp(rates) > _SAME:
        return Interval(*_percentiles(rates), "bootstrap")
    total = total_errors(counts)
    if total.errors > total.words:
        return NO_INTERVAL
    return Interval(*_wilson(total.errors, total.words), "wilson")


def num_informative(counts: Sequence[ErrorCounts]) -> int:
    """Number of utterances that a rate depends on; silence recognised as silence does not count."""
    errors = np.array([[count.errors for count in counts]])
    return _num_informative(errors, np.array([count.words for count in counts]))


def _num_informative(errors: IntArray, words: IntArray) -> int:
    """As :func:`num_informative`, for several systems: [S, N] errors and [N] words."""
    return int(((words > 0) | errors.any(axis=0)).sum())


def interval_note(counts: Sequence[ErrorCounts], interval: Interval) -> str | None:
    """A remark about an interval for the user; None if there is none.

    Args:
        counts: Errors per utterance.
        interval: Their interval from :func:`confidence_interval`.
    """
    number = num_informative(counts)
    parts = [few_note(number)]
    if interval.method is None and number > 1:
        parts.append("all have the same rate above 100 %: there is no interval")
    if interval.method == "wilson":
        total = total_errors(counts)
        same = "no error" if not total.errors else "the same share of errors in every utterance"
        parts.append(f"{same}: the interval is Wilson's for {total.words:,} words, not a bootstrap")
    return "; ".join(part for part in parts if part) or None


def few_note(number: int) -> str | None:
    """A remark for the user about a small number of utterances with words; None if not needed."""
    if number < 2:
        return f"{number} utterance with words: no interval and no p-value can be given"
    if number < FEW_UTTERANCES:
        return f"{number} utterances are few (below {FEW_UTTERANCES}): intervals are rough"
    return None


def _wilson(errors: int, words: int) -> tuple[float, float]:
    """Score interval of ``errors`` in ``words`` trials, in percent."""
    share, weight = errors / words, _Z * _Z / words
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    # Exactly 0 or 100 at the ends, where rounding would leave a tiny rest.
    low = 0.0 if errors == 0 else 100.0 * (centre - half)
    return low, 100.0 if errors == words else 100.0 * (centre + half)


def paired_bootstrap(
    counts_a: Sequence[ErrorCounts],
    counts_b: Sequence[ErrorCounts],
    *,
    samples: int = NUM_BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compares two systems on the same utterances: ``WER(b) - WER(a)``, its interval, and p.

    Both systems are resampled with the same utterances. So utterances that are hard for both cancel
    out, and differences become visible that two separate intervals would hide. One utterance gives
    no interval and no p. If all resamples have the same difference, there is no interval.

    Args:
        counts_a: Errors of the first system per utterance.
        counts_b: Errors of the second system on the same utterances in the same order.
        samples: Number of resampled corpora.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the two do not describe the same utterances, there is no reference word, or
            ``samples`` is below 1.

    Source: Bisani & Ney 2004, section 5 ("probability of improvement"), made two-sided.
    Deviation: p is never below ``2 ** (1 - m)``, where m is the number of utterances in which the
        systems differ. This is the smallest p of a two-sided test that exchanges the systems'
        results in each utterance (Fisher's sign flips). With two utterances, a bootstrap alone
        would give p = 0.002.
    """
    if [count.words for count in counts_a] != [count.words for count in counts_b]:
        raise ValueError(
            f"counts_b: expected the utterances of counts_a ({len(counts_a)}, the same number of "
            f"words in each), got {len(counts_b)} that differ"
        )
    difference = corpus_wer(counts_b) - corpus_wer(counts_a)
    errors = np.array([[count.errors for count in counts] for counts in (counts_a, counts_b)])
    words = np.array([count.words for count in counts_a])
    rates = _resampled_rates(errors, words, samples=samples, seed=seed)
    return _paired_difference(
        difference,
        rates[1] - rates[0],
        _num_differing(errors),
        _num_informative(errors, words),
    )


def mean_relative_difference(
    pairs: Sequence[tuple[Sequence[ErrorCounts], Sequence[ErrorCounts]]],
    *,
    samples: int = NUM_BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> PairedDifference | None:
    """Compares several pairs of systems at once: the mean of ``(WER(b) - WER(a)) / WER(a)``.

    All systems are resampled with the same utterances. Models of one training make similar errors
    at every size, so the mean over sizes is less certain than a mean of independent results.

    Args:
        pairs: Errors of a first and a second system per utterance; the same utterances, in the
            same order, everywhere.
        samples: Number of resampled corpora; those in which a first system has no error are
            dropped.
        seed: Seed of the resampling.

    Returns:
        The mean relative difference in percent; None if a first system makes no error at all.

    Raises:
        ValueError: If there is no pair, the systems were not measured on the same utterances, there
            is no reference word, or ``samples`` is below 1.

    Source: as :func:`paired_bootstrap`.
    """
    systems = [counts for pair in pairs for counts in pair]
    if len({tuple(count.words for count in counts) for counts in systems}) != 1:
        raise ValueError(f"pairs: expected the same utterances in each, got {len(pairs)} pairs")
    if not all(corpus_wer(first) for first, _ in pairs):
        return None
    errors = np.array([[count.errors for count in counts] for counts in systems])
    words = np.array([count.words for count in systems[0]])
    rates = _resampled_rates(errors, words, samples=samples, seed=seed)
    rates = rates[:, (rates[0::2] > 0).all(axis=0)]
    if rates.shape[1] == 0:
        return None
    whole = 100.0 * errors.sum(axis=1, keepdims=True) / words.sum()
    return _paired_difference(
        float(_mean_relative(whole)[0]),
        _mean_relative(rates),
        _num_differing(errors),
        _num_informative(errors, words),
    )


def _num_differing(errors: IntArray) -> int:
    """Utterances in which the error counts of first and second system differ, in any pair.

    Args:
        errors: [2P, N] int, of first and second systems in turn.
    """
    return int((errors[0::2] != errors[1::2]).any(axis=0).sum())


def _mean_relative(rates: FloatArray) -> FloatArray:
    """Mean relative difference of pairs, in percent.

    Args:
        rates: [2P, N] float64, the rates of first and second systems in turn, the first above 0.

    Returns:
        [N] float64.
    """
    first, second = rates[0::2], rates[1::2]
    mean: FloatArray = (100.0 * (second - first) / first).mean(axis=0)
    return mean


def _paired_difference(
    difference: float, resampled: FloatArray, num_differing: int, num_utterances: int
) -> PairedDifference:
    """A difference, its interval and its probability.

    Args:
        difference: Difference on the whole corpora.
        resampled: [N] float64, differences on the resampled corpora.
        num_differing: Utterances in which the systems differ.
        num_utterances: Utterances that the rates depend on.
    """
    if num_utterances < 2:
        return PairedDifference(difference=difference, low=None, high=None, p_value=None)
    # One is added so that a finite number of samples never gives a probability of zero.
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum())) + 1
    least = 2.0 ** (1 - num_differing) if num_differing < 64 else 0.0
    same = np.ptp(resampled) <= _SAME
    low, high = (None, None) if same else _percentiles(resampled)
    return PairedDifference(
        difference=difference,
        low=low,
        high=high,
        p_value=min(1.0, max(least, 2.0 * tail / (len(resampled) + 1))),
    )


def _resampled_rates(errors: IntArray, words: IntArray, *, samples: int, seed: int) -> FloatArray:
    """WER of resampled corpora.

    Args:
        errors: [S, N] int, errors of S systems on N utterances.
        words: [N] int, reference words.
        samples: Number of corpora to draw.
        seed: Seed of the draw.

    Returns:
        [S, samples'] float64, percent; a resample without any word has no rate and is dropped.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    generator = np.random.default_rng(seed)
    num_utterances = len(words)
    rates = np.full((len(errors), samples), np.nan)
    for sample in range(samples):
        drawn = generator.integers(num_utterances, size=num_utterances)
        drawn_words = words[drawn].sum()
        if drawn_words:
            rates[:, sample] = 100.0 * errors[:, drawn].sum(axis=1) / drawn_words
    return rates[:, ~np.isnan(rates[0])]


def _percentiles(values: FloatArray) -> tuple[float, float]:
    """Percentile interval of ``values``: [N] float64."""
    margin = (100.0 - CONFIDENCE_PERCENT) / 2.0
    low, high = np.percentile(values, [margin, 100.0 - margin])
    return float(low), float(high)
