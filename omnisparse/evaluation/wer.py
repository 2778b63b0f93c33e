"""Word errors: counts per utterance, the corpus rate in percent, and how sure one may be of it.

Words are what whitespace separates; nothing else is normalised, so case and punctuation must agree
between reference and hypothesis before they come here. Every rate in omnisparse is in percent: a
``wer`` of 5.7 means 5.7 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

NUM_BOOTSTRAP_SAMPLES = 1000
CONFIDENCE_PERCENT = 95.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCounts:
    """Word errors of one utterance, or of a corpus when summed.

    An utterance whose reference is empty has ``words == 0``: every word of its hypothesis is an
    insertion, which counts in the corpus rate, while the utterance has no rate of its own.
    """

    substitutions: int = 0
    """Reference words recognised as another word."""

    deletions: int = 0
    """Reference words without a counterpart."""

    insertions: int = 0
    """Hypothesis words without a counterpart."""

    words: int = 0
    """Reference words."""

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """How two systems differ on the same utterances: in points of WER or, relatively, percent."""

    difference: float
    """Of the second system to the first: negative where the second is better."""

    low: float
    """Lower end of the 95 % interval of the difference."""

    high: float
    """Upper end of the 95 % interval of the difference."""

    p_value: float
    """Two-sided bootstrap probability, in (0, 1], that equal systems differ so clearly."""


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Counts the word errors of each utterance by minimum edit distance.

    Args:
        references: What was said, one string per utterance. May be empty strings.
        hypotheses: What was recognised, in the order of ``references``.

    Returns:
        One count per utterance, in order.

    Raises:
        ValueError: If the two sequences differ in length.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"hypotheses: expected one per reference ({len(references)}), got {len(hypotheses)}"
        )
    if not references:
        return []
    import jiwer  # takes a moment to import, and `omnisparse --help` needs none of it

    spaced = [[" ".join(text.split()) for text in texts] for texts in (references, hypotheses)]
    output = jiwer.process_words(*spaced)  # which splits at the plain space only
    return [
        _count(chunks, words=len(reference))
        for chunks, reference in zip(output.alignments, output.references, strict=True)
    ]


def _count(chunks: Sequence[object], *, words: int) -> ErrorCounts:
    """Adds up the alignment chunks jiwer gives for one utterance."""
    totals = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in chunks:
        ref_span = chunk.ref_end_idx - chunk.ref_start_idx  # type: ignore[attr-defined]
        hyp_span = chunk.hyp_end_idx - chunk.hyp_start_idx  # type: ignore[attr-defined]
        totals[chunk.type] += max(ref_span, hyp_span)  # type: ignore[attr-defined]
    return ErrorCounts(
        substitutions=totals["substitute"],
        deletions=totals["delete"],
        insertions=totals["insert"],
        words=words,
    )


def total_errors(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    """Adds the counts of many utterances."""
    return ErrorCounts(
        substitutions=sum(count.substitutions for count in counts),
        deletions=sum(count.deletions for count in counts),
        insertions=sum(count.insertions for count in counts),
        words=sum(count.words for count in counts),
    )


def corpus_wer(counts: Sequence[ErrorCounts]) -> float:
    """Word error rate of a corpus in percent: all errors over all reference words.

    Above 100 where insertions abound.

    Raises:
        ValueError: If the references hold no word, so that no rate exists.
    """
    total = total_errors(counts)
    if total.words == 0:
        raise ValueError("references: not one word to count errors against; the WER is undefined")
    return 100.0 * total.errors / total.words


def bootstrap_interval(
    counts: Sequence[ErrorCounts], *, samples: int = NUM_BOOTSTRAP_SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the corpus WER, by resampling utterances with replacement.

    Utterances, not words, are drawn: the errors within one utterance depend on each other.

    Args:
        counts: Errors per utterance.
        samples: Number of resampled corpora.
        seed: Seed of the resampling; the interval is a function of (counts, samples, seed).

    Returns:
        Lower and upper end, in percent.

    Raises:
        ValueError: If there is no reference word, or ``samples`` is below 1.

    Source: Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance
        evaluation", section 3.
    """
    corpus_wer(counts)  # raises where no rate exists
    errors = np.array([[count.errors for count in counts]])
    words = np.array([count.words for count in counts])
    return _interval(_resampled_rates(errors, words, samples=samples, seed=seed)[0])


def paired_bootstrap(
    counts_a: Sequence[ErrorCounts],
    counts_b: Sequence[ErrorCounts],
    *,
    samples: int = NUM_BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compares two systems on the same utterances: ``WER(b) - WER(a)``, its interval, and p.

    Both systems are resampled with the same utterances, so what is hard for both cancels out and
    differences become visible that two separate intervals would hide.

    Args:
        counts_a: Errors of the first system per utterance.
        counts_b: Errors of the second system on the same utterances in the same order.
        samples: Number of resampled corpora.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the two do not describe the same utterances, hold no word, or ``samples`` is
            below 1.

    Source: Bisani & Ney 2004, section 5 ("probability of improvement"), made two-sided.
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
    return _paired_difference(difference, rates[1] - rates[0])


def mean_relative_difference(
    pairs: Sequence[tuple[Sequence[ErrorCounts], Sequence[ErrorCounts]]],
    *,
    samples: int = NUM_BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> PairedDifference | None:
    """Compares several pairs of systems at once: the mean of ``(WER(b) - WER(a)) / WER(a)``.

    All systems are resampled with the same utterances: models of one training err alike at every
    size, so the mean over sizes is less certain than as many independent results would make it.

    Args:
        pairs: Errors of a first and a second system per utterance; the same utterances, in the
            same order, everywhere.
        samples: Number of resampled corpora; where a first system makes no error, none counts.
        seed: Seed of the resampling.

    Returns:
        The mean relative difference in percent; None where a first system makes no error at all.

    Raises:
        ValueError: If there is no pair, the systems were not measured on the same utterances, hold
            no word, or ``samples`` is below 1.

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
    return _paired_difference(float(_mean_relative(whole)[0]), _mean_relative(rates))


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


def _paired_difference(difference: float, resampled: FloatArray) -> PairedDifference:
    """A difference, its interval and its probability.

    Args:
        difference: Of the whole corpora.
        resampled: [N] float64, of the resampled ones.
    """
    # One is added so that a finite number of samples never claims a probability of zero.
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum())) + 1
    low, high = _interval(resampled)
    return PairedDifference(
        difference=difference,
        low=low,
        high=high,
        p_value=min(1.0, 2.0 * tail / (len(resampled) + 1)),
    )


def _resampled_rates(errors: IntArray, words: IntArray, *, samples: int, seed: int) -> FloatArray:
    """WER of resampled corpora.

    Args:
        errors: [S, N] int, errors of S systems on N utterances.
        words: [N] int, reference words.
        samples: Number of corpora to draw.
        seed: Seed of the draw.

    Returns:
        [S, samples'] float64, percent; a drawn corpus without any word has no rate and is dropped.
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


def _interval(values: FloatArray) -> tuple[float, float]:
    """Percentile interval of ``values``: [N] float64."""
    margin = (100.0 - CONFIDENCE_PERCENT) / 2.0
    low, high = np.percentile(values, [margin, 100.0 - margin])
    return float(low), float(high)
