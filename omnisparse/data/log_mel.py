"""The log-mel front end of torchaudio's RNN-T pipelines in numpy; it is not Kaldi's."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_GAIN = 32767.0**2
"""Power of samples as 16-bit integers."""


@cache
def _tables(sampling_rate: int, num_bins: int) -> tuple[FloatArray, FloatArray]:
    """A periodic Hann window of 25 ms, and ``[fft / 2 + 1, num_bins]`` triangles in Hz."""
    length = sampling_rate * 25 // 1000
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    hertz = np.linspace(0, sampling_rate // 2, length // 2 + 1)[:, None]
    top = 2595.0 * math.log10(1.0 + sampling_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, num_bins + 2) / 2595.0) - 1.0)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((hertz - left) / (center - left), (right - hertz) / (right - center))
    return window.astype(np.float32), np.maximum(triangles, 0.0).astype(np.float32)


def piecewise_log_mel(samples: FloatArray, *, sampling_rate: int, num_bins: int) -> FloatArray:
    """Frames of 25 ms around every 10 ms, the first around sample 0; the edges are mirrored.

    Args:
        samples: [N] float32 in [-1, 1], at least 25 ms.
        sampling_rate: Rate in Hz, a multiple of 200.
        num_bins: Mel bins from 0 Hz to Nyquist.

    Returns:
        [N // 10 ms + 1, num_bins] float32: log of the energy where it is above e, else its e-th
        part.

    Source: torchaudio 2.11, ``pipelines/rnnt_pipeline.py``: ``MelSpectrogram`` (HTK mel, power),
    ``_gain``, ``_piecewise_linear_log``.
    """
    window, filters = _tables(sampling_rate, num_bins)
    shift, length = sampling_rate // 100, len(window)
    padded = np.pad(samples.astype(np.float32, copy=False), length // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::shift]
    spectrum = np.fft.rfft(frames[: len(samples) // shift + 1] * window, length)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
    energy = (power @ filters) * np.float32(_GAIN)
    scaled: FloatArray = energy / np.float32(math.e)
    return np.where(energy > math.e, np.log(np.maximum(energy, 1.0)), scaled)
