"""Long recordings are cut where it is quiet, and nothing that is said is lost."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from omnisparse.data.pauses import cut_at_pauses

RATE = 16000


def speech(seconds: float, generator: np.random.Generator) -> np.ndarray:
    """Noise whose level goes up and down 4 times a second, as syllables do."""
    t = np.arange(round(seconds * RATE)) / RATE
    level = 0.1 * (0.15 + np.sin(2 * np.pi * 2 * t) ** 2)
    return (level * generator.standard_normal(len(t))).astype(np.float32)


def recording(
    spoken: list[float], pauses: list[float], noise: float = 1e-4
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Speech and pauses in turn, and where the speech is."""
    generator = np.random.default_rng(0)
    parts, places, count = [], [], 0
    for seconds, pause in zip(spoken, pauses, strict=True):
        said = speech(seconds, generator)
        places.append((count, count + len(said)))
        silence = np.zeros(round(pause * RATE), np.float32)
        parts += [said, silence]
        count += len(said) + len(silence)
    samples = np.concatenate(parts)
    samples += noise * generator.standard_normal(len(samples)).astype(np.float32)
    return samples, places


def check(pieces: list[tuple[int, int]], samples: np.ndarray, max_seconds: float) -> None:
    assert all(0 <= first < last <= len(samples) for first, last in pieces)
    assert all(last <= first for (_, last), (first, _) in pairwise(pieces))
    assert max(last - first for first, last in pieces) <= max_seconds * RATE


@pytest.mark.parametrize("noise", [0.0, 1e-4, 3e-3])
def test_each_sentence_is_a_piece_and_long_pauses_are_in_none(noise: float) -> None:
    samples, places = recording([2.0, 3.0, 2.5, 1.0], [1.5, 0.9, 5.0, 2.0], noise)
    pieces = cut_at_pauses(samples, RATE, 4.0)
    check(pieces, samples, 4.0)
    assert len(pieces) == 4
    for (first, last), (start, end) in zip(pieces, places, strict=True):
        assert first <= start
        assert end <= last
    heard = sum(last - first for first, last in pieces) / RATE
    assert heard < 8.5 + 4 * 0.6


def test_a_sentence_as_long_as_a_piece_is_not_cut_for_its_edges() -> None:
    samples, places = recording([3.0, 2.9, 3.0], [1.5, 1.5, 1.5])
    pieces = cut_at_pauses(samples, RATE, 3.1)
    check(pieces, samples, 3.1)
    assert len(pieces) == 3
    for (first, last), (start, end) in zip(pieces, places, strict=True):
        assert first <= start
        assert end <= last


def test_without_long_pauses_the_cuts_are_in_the_short_ones() -> None:
    samples, places = recording([2.0] * 20, [0.2] * 20)
    pieces = cut_at_pauses(samples, RATE, 5.0)
    check(pieces, samples, 5.0)
    for first, _ in pieces[1:]:
        distances = [min(abs(first - end), abs(first - end - 0.2 * RATE)) for _, end in places]
        inside = [end <= first <= end + 0.2 * RATE for _, end in places]
        assert any(inside) or min(distances) < 0.03 * RATE
    # Everything between the first and the last piece is heard.
    assert all(last == first for (_, last), (first, _) in pairwise(pieces))


def test_speech_without_any_pause_is_cut_all_the_same() -> None:
    generator = np.random.default_rng(1)
    for samples in (speech(47.0, generator), np.full(47 * RATE, 0.3, np.float32)):
        pieces = cut_at_pauses(samples, RATE, 6.0)
        check(pieces, samples, 6.0)
        assert sum(last - first for first, last in pieces) == len(samples)
        assert min(last - first for first, last in pieces) > 0.29 * 6.0 * RATE


def test_what_is_short_enough_stays_whole() -> None:
    samples = np.zeros(4 * RATE, np.float32)
    assert cut_at_pauses(samples, RATE, 4.0) == [(0, 4 * RATE)]
    assert cut_at_pauses(samples[:100], RATE, 4.0) == [(0, 100)]
    # A length in seconds may be rounded by whoever recorded it.
    assert cut_at_pauses(samples, RATE, 3.9999) == [(0, 4 * RATE)]


def test_a_recording_without_voice_has_no_piece() -> None:
    assert cut_at_pauses(np.zeros(30 * RATE, np.float32), RATE, 4.0) == []


def test_other_rates_and_lengths_that_are_no_whole_frames() -> None:
    generator = np.random.default_rng(2)
    for rate, extra in ((8000, 0), (11025, 37), (22050, 1), (44100, 440)):
        samples = (0.1 * generator.standard_normal(rate * 10 + extra)).astype(np.float32)
        pieces = cut_at_pauses(samples, rate, 3.0)
        assert pieces[0][0] == 0
        assert pieces[-1][1] == len(samples)
        assert max(last - first for first, last in pieces) <= 3.0 * rate + rate / 100


def test_lengths_that_cannot_be_are_refused() -> None:
    for seconds in (0.0, 0.5, float("nan"), -1.0):
        with pytest.raises(ValueError, match="max_seconds is .*; at least 1"):
            cut_at_pauses(np.zeros(RATE, np.float32), RATE, seconds)


def test_ten_minutes_are_cut_in_a_moment() -> None:
    samples, _ = recording([4.0] * 133, [0.5] * 133)
    started = time.process_time()
    pieces = cut_at_pauses(samples, RATE, 15.0)
    assert time.process_time() - started < 2.0
    check(pieces, samples, 15.0)
