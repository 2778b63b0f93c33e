"""How often equal systems are called different, and how often an interval misses the true rate.

Each of two systems understands each speaker well or badly: its error rate of a speaker is 10 %
times a log-normal factor. The systems are equal: their factors have the same distribution. The
table compares ways to test the difference of their rates on the same speakers at p < 0.05, and the
interval of one rate. Run: ``python tools/simulate_intervals.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from omnisparse.evaluation.confidence import confidence_interval, paired_difference
from omnisparse.evaluation.wer import ErrorCounts

IntArray = npt.NDArray[np.int64]
RATE, UTTERANCES, WORDS = 0.1, 20, 32
BOOTSTRAPS = 1000

# speakers, log-sd of a system's factor of a speaker, log-sd of a speaker's number of words, seeds,
# log-sd of a seed's factor
SETTINGS = [
    (8, 0.0, 0.0, 1, 0.0),
    (8, 0.15, 0.0, 1, 0.0),
    (8, 0.3, 0.0, 1, 0.0),
    (10, 0.0, 0.0, 1, 0.0),
    (10, 0.15, 0.0, 1, 0.0),
    (10, 0.3, 0.0, 1, 0.0),
    (10, 0.3, 0.5, 1, 0.0),
    (10, 0.3, 1.0, 1, 0.0),
    (16, 0.3, 0.0, 1, 0.0),
    (40, 0.3, 0.0, 1, 0.0),
    (40, 0.3, 1.0, 1, 0.0),
    (10, 0.3, 0.0, 3, 0.1),
    (16, 0.1, 0.0, 3, 0.1),
]


def draw(
    generator: np.random.Generator, setting: tuple[int, float, float, int, float]
) -> tuple[IntArray, IntArray]:
    """Words [N] of utterances, speaker by speaker, and errors [2, S, N] of two equal systems."""
    speakers, deviation, uneven, seeds, spread = setting
    words = np.maximum(4, WORDS * np.exp(generator.normal(0, uneven, speakers))).astype(int)
    effects = np.exp(generator.normal(0, deviation, (2, 1, speakers)) - deviation**2 / 2)
    quality = np.exp(generator.normal(0, spread, (2, seeds, 1)) - spread**2 / 2)
    rates = np.minimum(RATE * effects * quality, 1.0).repeat(UTTERANCES, axis=2)
    said = words.repeat(UTTERANCES)
    return said, generator.binomial(said, rates)


def percentile_p(differences: IntArray, words: IntArray, generator: np.random.Generator) -> float:
    """Two-sided p of a percentile bootstrap over the units."""
    drawn = generator.integers(len(words), size=(BOOTSTRAPS, len(words)))
    found = differences[drawn].sum(axis=1)
    return 2 * (min((found <= 0).sum(), (found >= 0).sum()) + 1) / (BOOTSTRAPS + 1)


def sign_flip_p(differences: IntArray, words: IntArray, generator: np.random.Generator) -> float:
    """Two-sided p of exchanging the systems' results in each unit by chance."""
    signs = generator.choice([-1, 1], size=(BOOTSTRAPS, len(words)))
    found = np.abs(signs @ differences)
    return float(((found >= abs(differences.sum())).sum() + 1) / (BOOTSTRAPS + 1))


def _counts(errors: IntArray, words: IntArray) -> list[list[ErrorCounts]]:
    return [
        [ErrorCounts(substitutions=int(e), words=int(w)) for e, w in zip(row, words, strict=True)]
        for row in errors
    ]


def simulate(setting: tuple[int, float, float, int, float], times: int) -> list[float]:
    """Shares of the draws in which each method finds a difference; last: of missed rates."""
    generator = np.random.default_rng(0)
    speakers = setting[0]
    names = [f"{index}" for index in range(speakers) for _ in range(UTTERANCES)]
    found = np.zeros(6)
    for _ in range(times):
        words, errors = draw(generator, setting)
        first, second = (_counts(part, words) for part in errors)
        mean = errors[1].sum(axis=0) - errors[0].sum(axis=0)
        by_speaker = mean.reshape(speakers, -1).sum(axis=1)
        said = words.reshape(speakers, -1).sum(axis=1)
        own = confidence_interval(*first, speakers=names)
        tests: Sequence[Callable[[], float | None]] = (
            partial(percentile_p, mean, words, generator),
            partial(percentile_p, by_speaker, said, generator),
            partial(sign_flip_p, by_speaker, said, generator),
            lambda: paired_difference(first, second).p_value,  # noqa: B023
            lambda: paired_difference(first, second, speakers=names).p_value,  # noqa: B023
        )
        p_values = [test() for test in tests]
        assert own.low is not None and own.high is not None  # noqa: PT018
        missed = not own.low <= 100 * RATE <= own.high
        found += [*(p is not None and p < 0.05 for p in p_values), missed]
    return [float(share) for share in found / times]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=2000, help="draws of each setting")
    times = parser.parse_args().times
    started = time.perf_counter()
    print(
        "| speakers | log-sd of speakers | log-sd of their words | seeds (log-sd) | bootstrap of "
        "utterances | bootstrap of speakers | sign flips of speakers | utterances left out | "
        "**speakers (and seeds) left out** | interval misses the rate |"
    )
    print("|" + "---:|" * 10)
    for setting in SETTINGS:
        speakers, deviation, uneven, seeds, spread = setting
        shares = simulate(setting, times)
        cells = [f"{100 * share:.1f} %" for share in shares]
        cells[4] = f"**{cells[4]}**"
        spoken = f"{seeds} ({spread:g})" if seeds > 1 else "1"
        print(f"| {speakers} | {deviation:g} | {uneven:g} | {spoken} | {' | '.join(cells)} |")
    print(f"\n{times:,} draws each, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
