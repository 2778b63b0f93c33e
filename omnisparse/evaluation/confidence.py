"""Confidence intervals of a word error rate, and of the difference between two rates.

Speakers are left out in turn (jackknife): how much the rate changes says how much other speakers
would change it. Several seeds are left out in turn, too. Where a test set names fewer than five
speakers, its utterances are left out in turn. If no unit changes the rate, there is no information
about chance; then Wilson's score interval is used, above all for a test without any error. One
utterance has no interval and no p-value.

Source: the jackknife over clusters, with a t distribution for few clusters: MacKinnon, Nielsen
    & Webb 2023, "Fast and reliable jackknife and bootstrap methods for cluster-robust inference"
    (their CV3). That errors of one speaker belong together: Bisani & Ney 2004, "Bootstrap estimates
    for confidence intervals in ASR performance evaluation"; Liu & Peng 2020, "Statistical testing
    on ASR performance via blockwise bootstrap". Speakers and seeds together: Cameron, Gelbach &
    Miller 2011, "Robust inference with multiway clustering", without the term that they subtract,
    so that the variance is never too small; degrees of freedom by Satterthwaite 1946.
Deviation: no bootstrap. With 10 speakers its percentiles call 10 % of equal systems different at
    0.05, the jackknife 5 % (``tools/simulate_intervals.py``). Degrees of freedom are the effective
    number of units (inverse of Simpson's index of their words) minus 1, which is the number minus 1
    where all say as many words; the number itself calls 8 % of equal systems different where a few
    speakers say most words, this 4 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from omnisparse.evaluation.clusters import (
    SPEAKERS_FOR_A_STAR,
    Clusters,
    IntArray,
    Unit,
    clusters_of,
    num_speakers,
)
from omnisparse.evaluation.student import half_width, two_sided_p
from omnisparse.evaluation.wer import ErrorCounts, corpus_wer, total_errors

FloatArray = npt.NDArray[np.float64]
Counts = Sequence[ErrorCounts]
"""The errors of a system in each utterance."""
Speakers = Sequence[str | None] | None
"""The speaker of each utterance; None if the test set names none."""

FEW_UTTERANCES = 20
"""With fewer utterances, an interval is rough, and the user is told."""

SIGNIFICANT = 0.05
"""A difference with a smaller p-value may be called significant."""

SEEDS_FOR_A_STAR = 3
"""With fewer seeds of either row, no difference between rows is called significant."""

_Z = 1.959963984540054
"""95 % of a normal distribution lie within this number of standard deviations."""
_SAME = 1e-9
"""Standard errors below this (in percent) count as none."""


class Interval(NamedTuple):
    """A 95 % interval of a rate in percent; the ends are None if there is no interval."""

    low: float | None
    high: float | None
    method: Unit | Literal["wilson"] | None
    """What was left out in turn, ``speakers`` or ``utterances``; or ``wilson``."""


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

    seeds: int
    """Fewest seeds of any compared system. With one, interval and p-value are those of two trained
    nets, and say nothing of other seeds."""

    speakers: int
    """Named speakers of the test set."""

    @property
    def is_significant(self) -> bool:
        """Whether the methods differ: p below 0.05 with three seeds and ten speakers or more."""
        return (
            self.p_value is not None
            and self.p_value < SIGNIFICANT
            and self.seeds >= SEEDS_FOR_A_STAR
            and self.speakers >= SPEAKERS_FOR_A_STAR
        )


def confidence_interval(*seeds: Counts, speakers: Speakers = None) -> Interval:
    """95 % interval of the corpus WER, or of its mean over seeds.

    The interval is symmetric for the logarithm of the rate, so that its lower end is above 0. If no
    unit changes the rate (no utterance has an error, or all have the same share of errors), the
    interval is Wilson's, which treats each word as an independent trial: without an error in N
    words its upper end is ``3.84 / (N + 3.84)``. Words of one utterance are not independent, so
    this upper end is too low.

    Args:
        *seeds: Errors per utterance of the system, once per seed; of words or of characters.
        speakers: Speaker of each utterance.

    Returns:
        Lower and upper end, in percent, and the method; all None if fewer than two utterances have
        words or errors, if all have the same rate above 100 %, or if one unit has all words.

    Raises:
        ValueError: If there is no reference word, or the seeds are of different utterances.

    Source: see the module. Wilson 1927, "Probable inference, the law of succession, and statistical
        inference"; recommended for small samples and rates near 0 by Brown, Cai & DasGupta 2001,
        "Interval estimation for a binomial proportion", section 4.1.
    """
    test = _Test([list(seeds)], speakers)
    rate = float(test.rates[0])
    if test.num_informative < 2:
        return NO_INTERVAL
    deviation, freedom = test.error_of(lambda rates: rates[0])
    if deviation > _SAME:
        factor = math.exp(half_width(freedom) * deviation / rate)
        return Interval(rate / factor, rate * factor, test.clusters.unit)
    total = total_errors([count for counts in seeds for count in counts])
    if total.errors > total.words or test.words.max() == test.words.sum():
        return NO_INTERVAL
    share = total.errors / total.words
    return Interval(*_wilson(share, total.words // len(seeds)), "wilson")


def num_informative(counts: Counts) -> int:
    """Number of utterances that a rate depends on; silence recognised as silence does not count."""
    return sum(count.words > 0 or count.errors > 0 for count in counts)


def interval_note(counts: Counts, interval: Interval) -> str | None:
    """A remark about an interval for the user; None if there is none.

    Args:
        counts: Errors per utterance.
        interval: Their interval from :func:`confidence_interval`.
    """
    number = num_informative(counts)
    parts = [few_note(number)]
    if interval.method is None and number > 1:
        parts.append(
            "there is no interval: all have the same rate above 100 %, or one has all words"
        )
    if interval.method == "wilson":
        total = total_errors(counts)
        same = "no error" if not total.errors else "the same share of errors in every utterance"
        parts.append(f"{same}: the interval is Wilson's for {total.words:,} words")
    return "; ".join(part for part in parts if part) or None


def few_note(number: int) -> str | None:
    """A remark for the user about a small number of utterances with words; None if not needed."""
    if number < 2:
        return f"{number} utterance with words: no interval and no p-value can be given"
    if number < FEW_UTTERANCES:
        return f"{number} utterances are few (below {FEW_UTTERANCES}): intervals are rough"
    return None


def _wilson(share: float, words: int) -> tuple[float, float]:
    """Score interval of a share of errors in ``words`` trials, in percent."""
    weight = _Z * _Z / words
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    # Exactly 0 or 100 at the ends, where rounding would leave a tiny rest.
    low = 0.0 if share == 0 else 100.0 * (centre - half)
    return low, 100.0 if share == 1 else 100.0 * (centre + half)


def paired_difference(
    first: Sequence[Counts], second: Sequence[Counts], *, speakers: Speakers = None
) -> PairedDifference:
    """Compares two systems on the same utterances: ``WER(second) - WER(first)``, its interval, p.

    Both systems lose the same units in turn. So speakers that are hard for both cancel out, and
    differences become visible that two separate intervals would hide. One utterance gives no
    interval and no p. If no unit changes the difference, there is no interval.

    Args:
        first: Errors of the first system per utterance, once per seed.
        second: Errors of the second system on the same utterances in the same order, per seed. The
            seeds of the two systems are independent; their numbers may differ.
        speakers: Speaker of each utterance.

    Raises:
        ValueError: If they do not describe the same utterances, or there is no reference word.

    Source: see the module.
    Deviation: p is never below ``2 ** (1 - m)``, where m is the number of units in which the
        systems differ. This is the smallest p of a two-sided test that exchanges the systems'
        results in each unit (Fisher's sign flips).
    """
    test = _Test([list(first), list(second)], speakers)
    return test.paired(lambda rates: rates[1] - rates[0], [[0], [1]])


def mean_relative_difference(
    pairs: Sequence[tuple[Sequence[Counts], Sequence[Counts]]], *, speakers: Speakers = None
) -> PairedDifference | None:
    """Compares several pairs of systems at once: the mean of ``(WER(b) - WER(a)) / WER(a)``.

    All systems lose the same units in turn. Models of one training make similar errors at every
    size, so the mean over sizes is less certain than a mean of independent results. Seeds of one
    row are taken to be the same at every size, in the given order.

    Args:
        pairs: Errors of a first and a second system per utterance, once per seed; the same
            utterances, in the same order, everywhere.
        speakers: Speaker of each utterance.

    Returns:
        The mean relative difference in percent; None if a first system makes no error at all, or
        none without one of its units or seeds.

    Raises:
        ValueError: If there is no pair, the systems were not measured on the same utterances, or
            there is no reference word.

    Source: as :func:`paired_difference`.
    """
    if not pairs:
        raise ValueError("pairs: expected the same utterances in each, got 0 pairs")
    test = _Test([list(seeds) for pair in pairs for seeds in pair], speakers)
    systems = list(range(2 * len(pairs)))
    firsts, seconds = systems[0::2], systems[1::2]
    for rates in (test.rates, test.left_out(), *test.without_seeds(firsts)):
        if not (rates[firsts] > 0).all():
            return None
    return test.paired(_mean_relative, [firsts, seconds])


def _mean_relative(rates: FloatArray) -> FloatArray:
    """Mean relative difference of pairs, in percent.

    Args:
        rates: [2P, ...] float64, the rates of first and second systems in turn, the first above 0.

    Returns:
        [...] float64.
    """
    first, second = rates[0::2], rates[1::2]
    mean: FloatArray = (100.0 * (second - first) / first).mean(axis=0)
    return mean


class _Test:
    """Systems on one test set: their rates, and the rates without each unit.

    Args:
        systems: For each system and each of its seeds the errors per utterance.
        speakers: Speaker of each utterance.
    """

    def __init__(self, systems: Sequence[Sequence[Counts]], speakers: Speakers) -> None:
        every = [counts for seeds in systems for counts in seeds]
        said = [[count.words for count in counts] for counts in every]
        if any(words != said[0] for words in said[1:]):
            numbers = ", ".join(str(number) for number in dict.fromkeys(map(len, said)))
            raise ValueError(
                "systems: expected the same utterances in each (the same number of words in each "
                f"utterance), got systems of {numbers} utterances that differ"
            )
        corpus_wer(every[0])  # raises if no rate exists
        errors = np.array([[count.errors for count in counts] for counts in every], dtype=np.int64)
        words = np.array(said[0], dtype=np.int64)
        self.num_informative = int(((words > 0) | errors.any(axis=0)).sum())
        self.speakers = num_speakers(speakers)
        self.clusters: Clusters = clusters_of(speakers, len(words))
        self.words: IntArray = self.clusters.sums(words)
        starts = np.cumsum([0, *map(len, systems)])
        summed = self.clusters.sums(errors)
        self.errors = [summed[a:b] for a, b in pairwise(starts)]
        """For each system [S, G] int, its errors by seed and unit."""

    @property
    def rates(self) -> FloatArray:
        """[K] float64, the mean over seeds of every system's rate, in percent."""
        means = np.array([part.sum() / len(part) for part in self.errors])
        rates: FloatArray = 100.0 * means / self.words.sum()
        return rates

    def left_out(self) -> FloatArray:
        """[K, G'] float64, the rates without each unit; a unit that has all words has none."""
        left = self.words.sum() - self.words
        kept = left > 0
        sums = np.array([part.sum() - part.sum(axis=0) for part in self.errors], dtype=np.float64)
        numbers = np.array([[len(part)] for part in self.errors])
        rates: FloatArray = 100.0 * sums[:, kept] / (numbers * left[kept])
        return rates

    def without_seeds(self, row: Sequence[int]) -> Iterator[FloatArray]:
        """[K] float64, the rates without each seed of the systems of a row."""
        for seed in range(max(len(self.errors[system]) for system in row)):
            rates = self.rates
            for system in row:
                part = self.errors[system]
                if seed < len(part) > 1:
                    rest = part.sum() - part[seed].sum()
                    rates[system] = 100.0 * rest / (len(part) - 1) / self.words.sum()
            yield rates

    def error_of(
        self,
        statistic: Callable[[FloatArray], FloatArray],
        rows: Sequence[Sequence[int]] = ((0,),),
    ) -> tuple[float, float]:
        """Standard error of a statistic of the rates, and its degrees of freedom.

        Args:
            statistic: [K, ...] rates to [...] values.
            rows: Systems that share their seeds; seeds of different rows are independent.
        """
        whole = statistic(self.rates)
        parts = [(_jackknife(statistic(self.left_out()), whole), self._freedom)]
        for row in rows:
            fewest = min(len(self.errors[system]) for system in row)
            if fewest > 1:
                values = np.array([statistic(rates) for rates in self.without_seeds(row)])
                parts.append((_jackknife(values, whole), float(len(values) - 1)))
        variance = sum(part for part, _ in parts)
        if variance <= 0:
            return 0.0, self._freedom
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
        return math.sqrt(variance), freedom

    @property
    def _freedom(self) -> float:
        """Effective number of units minus 1, at least 1."""
        shares = self.words / self.words.sum()
        return max(1.0, 1.0 / float((shares**2).sum()) - 1.0)

    def paired(
        self, statistic: Callable[[FloatArray], FloatArray], rows: Sequence[Sequence[int]]
    ) -> PairedDifference:
        """A difference, its interval and its probability.

        Args:
            statistic: [K, ...] rates to [...] differences.
            rows: The first systems, and the second.
        """
        difference = float(statistic(self.rates))
        low = high = p_value = None
        if self.num_informative > 1:
            deviation, freedom = self.error_of(statistic, rows)
            if deviation > _SAME:
                half = half_width(freedom) * deviation
                low, high = difference - half, difference + half
                p_value = two_sided_p(difference / deviation, freedom)
            else:
                p_value = 0.0 if abs(difference) > _SAME else 1.0
            p_value = max(p_value, 2.0 ** (1 - min(self._num_differing(rows), 64)))
        return PairedDifference(
            difference=difference,
            low=low,
            high=high,
            p_value=None if p_value is None else min(1.0, p_value),
            seeds=min(map(len, self.errors)),
            speakers=self.speakers,
        )

    def _num_differing(self, rows: Sequence[Sequence[int]]) -> int:
        """Units in which the mean errors of first and second system differ, in any pair."""
        differ = [
            len(self.errors[b]) * self.errors[a].sum(axis=0)
            != len(self.errors[a]) * self.errors[b].sum(axis=0)
            for a, b in zip(*rows, strict=True)
        ]
        return int(np.any(differ, axis=0).sum())


def _jackknife(values: FloatArray, whole: FloatArray) -> float:
    """Variance of a statistic from its [G] values without each unit, and its value with all."""
    number = len(values)
    return float((number - 1) / number * ((values - whole) ** 2).sum()) if number > 1 else 0.0
