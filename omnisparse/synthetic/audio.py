"""Audio of the embedded corpus: resampling, noise, level, and the process that renders it.

An utterance is a pure function of its :class:`Utterance` and the :class:`Acoustics`. Its bytes do
not depend on the number of processes or on the order. Arrays here are ``[N]`` float64 samples.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omnisparse.data.heap import keep_freed_memory
from omnisparse.errors import DataError
from omnisparse.synthetic.espeak import speak
from omnisparse.synthetic.text import SPLITS

Samples = npt.NDArray[np.float64]

SAMPLING_RATE = 16000
"""Sampling rate of the corpus, in Hz."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Acoustics:
    """Ranges from which the conditions of every utterance are drawn, uniformly."""

    snr_db: tuple[float, float]
    """Signal-to-noise ratio, power of speech over power of noise, in dB."""
    rate_wpm: tuple[int, int]
    """Speaking rate in words per minute."""
    pitch: tuple[int, int]
    """Base pitch relative to the voice's own (50 = unchanged)."""
    pitch_range: tuple[int, int]
    """Range of the intonation (50 = unchanged)."""
    babble_share: float
    """Share of the utterances whose noise is other people talking, in [0, 1]."""
    level_dbfs: tuple[float, float] = (-36.0, -16.0)
    """Power of the speech relative to full scale, in dB."""
    padding_seconds: tuple[float, float] = (0.05, 0.25)
    """Silence (with noise) before and after the speech."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One line of the plan: speaker, text, and the seed of its random numbers."""

    split: str
    index: int
    """Position in its split, from 0."""
    text: str
    voice: str
    seed: int

    @property
    def id(self) -> str:
        """Unique in the corpus, such as ``train-0000042``."""
        return f"{self.split}-{self.index:07d}"

    @property
    def audio_path(self) -> str:
        """Relative to the corpus; at most 1,000 files per folder."""
        return f"audio/{self.split}/{self.index // 1000:04d}/{self.id}.wav"

    @property
    def speaker(self) -> str:
        """The voice as one word."""
        return self.voice.replace(" ", "_")


def resample(samples: Samples, source_rate: int, target_rate: int = SAMPLING_RATE) -> Samples:
    """Resample by the Fourier transform, with a raised-cosine edge below the new half rate.

    Args:
        samples: ``[N]``, silent at both ends (the transform is periodic).
        source_rate: In Hz.
        target_rate: In Hz, at most ``source_rate``.

    Returns:
        ``[ceil(N * target_rate / source_rate)]`` samples.
    """
    if source_rate == target_rate:
        return samples
    divisor = math.gcd(source_rate, target_rate)
    step, kept = source_rate // divisor, target_rate // divisor
    num_samples = -(-len(samples) * kept // step)
    num_blocks = _smooth_above(len(samples) // step + 1)
    spectrum = np.fft.rfft(samples, num_blocks * step)
    num_bins = num_blocks * kept // 2 + 1
    spectrum = spectrum[:num_bins]
    edge = max(1, num_bins // 20)
    spectrum[-edge:] *= 0.5 + 0.5 * np.cos(np.linspace(0.0, np.pi, edge))
    resampled = np.fft.irfft(spectrum, num_blocks * kept) * (kept / step)
    return np.asarray(resampled[:num_samples])


def _smooth_above(number: int) -> int:
    """Smallest number >= ``number`` without a prime factor above 5: its FFT is fast."""
    while True:
        rest = number
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return number
        number += 1


def trim_silence(samples: Samples) -> Samples:
    """Cut both ends where the samples stay below 0.5 % of the peak."""
    magnitude = np.abs(samples)
    loud = np.flatnonzero(magnitude > 0.005 * magnitude.max(initial=0.0))
    return samples[loud[0] : loud[-1] + 1] if loud.size else samples[:0]


def colored_noise(rng: np.random.Generator, num_samples: int, exponent: float) -> Samples:
    """Noise of unit power whose power falls as ``1 / f ** exponent`` (0 white, 1 pink, 2 brown)."""
    period = _smooth_above(num_samples)
    spectrum = np.fft.rfft(rng.standard_normal(period))
    frequency = np.arange(len(spectrum), dtype=np.float64)
    # Flat below about 20 Hz: brown noise would otherwise be one slow wave.
    frequency = np.maximum(frequency, 20.0 * period / SAMPLING_RATE)
    noise = np.fft.irfft(spectrum * frequency ** (-exponent / 2.0), period)[:num_samples]
    return _unit_power(noise)


def _unit_power(samples: Samples) -> Samples:
    return np.asarray(samples / np.sqrt(np.mean(samples**2) + 1e-20))


class Renderer:
    """Turns planned utterances into WAV files.

    Args:
        root: Folder of the corpus.
        acoustics: Conditions to draw from.
        babble: ``(text, voice)`` pairs for the talkers in the background. They must come from the
            training split, otherwise test voices would be heard in training.
    """

    def __init__(
        self, root: Path, acoustics: Acoustics, babble: list[tuple[str, str]], num_talkers: int = 6
    ) -> None:
        self._root = root
        self._acoustics = acoustics
        lanes: list[list[Samples]] = [[] for _ in range(num_talkers)]
        for position, (text, voice) in enumerate(babble):
            lanes[position % num_talkers].append(_unit_power(_speech(text, voice)))
        talkers = [np.concatenate(lane) for lane in lanes if lane]
        length = min((len(talker) for talker in talkers), default=0)
        self._babble: Samples = np.sum([t[:length] for t in talkers], axis=0) if length else _EMPTY

    def render(self, utterance: Utterance) -> dict[str, Any]:
        """Write the WAV file of ``utterance`` and return its manifest line."""
        acoustics = self._acoustics
        rng = np.random.default_rng(
            [utterance.seed, SPLITS.index(utterance.split), utterance.index, 0]
        )
        speech = _speech(
            utterance.text,
            utterance.voice,
            rate_wpm=_draw_int(rng, acoustics.rate_wpm),
            pitch=_draw_int(rng, acoustics.pitch),
            pitch_range=_draw_int(rng, acoustics.pitch_range),
        )
        snr_db = rng.uniform(*acoustics.snr_db)
        level_dbfs = rng.uniform(*acoustics.level_dbfs)
        before, after = (int(s * SAMPLING_RATE) for s in rng.uniform(*acoustics.padding_seconds, 2))
        clean = np.pad(_unit_power(speech), (before, after))
        noise = self._noise(rng, len(clean))
        mixed = (clean + noise * 10.0 ** (-snr_db / 20.0)) * 10.0 ** (level_dbfs / 20.0)
        mixed *= min(1.0, 0.98 / float(np.abs(mixed).max()))
        _write_wav(self._root / utterance.audio_path, mixed)
        return {
            "id": utterance.id,
            "audio_filepath": utterance.audio_path,
            "duration": len(mixed) / SAMPLING_RATE,
            "text": utterance.text,
            "speaker": utterance.speaker,
            "snr_db": round(float(snr_db), 2),
        }

    def _noise(self, rng: np.random.Generator, num_samples: int) -> Samples:
        is_babble = rng.uniform() < self._acoustics.babble_share
        if is_babble and len(self._babble):
            start = int(rng.integers(len(self._babble)))
            indices = np.arange(start, start + num_samples) % len(self._babble)
            return _unit_power(self._babble[indices])
        return colored_noise(rng, num_samples, float(rng.uniform(0.0, 2.0)))


_EMPTY: Samples = np.zeros(0)


def _speech(
    text: str, voice: str, *, rate_wpm: int = 175, pitch: int = 50, pitch_range: int = 50
) -> Samples:
    spoken = speak(text, voice=voice, rate_wpm=rate_wpm, pitch=pitch, pitch_range=pitch_range)
    speech = trim_silence(resample(spoken.samples, spoken.sampling_rate))
    if not speech.size:
        raise DataError(f"espeak-ng produces no sound for {text!r}")
    return speech


def _draw_int(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def _write_wav(path: Path, samples: Samples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes(np.round(samples * 32767.0).astype("<i2").tobytes())


def serve() -> None:
    """Read requests from standard input, one JSON value per line, and answer with one line each.

    The first line is ``{"root", "acoustics", "babble"}``; every other line is a list of
    utterances. An answer is the list of manifest lines, or ``{"error": message}``. The process
    ends when the input ends.
    """
    keep_freed_memory()
    settings = json.loads(sys.stdin.readline())
    renderer: Renderer | None = None
    for line in sys.stdin:
        answer: Any
        try:
            renderer = renderer or Renderer(
                Path(settings["root"]), Acoustics(**settings["acoustics"]), settings["babble"]
            )
            answer = [renderer.render(Utterance(**fields)) for fields in json.loads(line)]
        except Exception as error:  # the parent reports any failure in one line
            answer = {"error": f"{type(error).__name__}: {error}"}
        try:
            print(json.dumps(answer), flush=True)
        except BrokenPipeError:  # the parent was killed; a normal exit would flush and fail
            os._exit(1)
