"""The log-mel front end of NeMo's recognisers in numpy: samples are emphasised, then cut."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_PREEMPHASIS = 0.97
ZERO_GUARD = 2.0**-24
"""Added to an energy before its log is taken."""
_SMALLEST_STD = 1e-5

# Slaney's mel scale: 3 mel are 200 Hz up to 1 kHz; above it 27 mel are a factor of 6.4.
_HERTZ_PER_MEL = 200.0 / 3
_KNEE_HERTZ = 1000.0
_KNEE_MEL = _KNEE_HERTZ / _HERTZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


@cache
def nemo_tables(sampling_rate: int, num_bins: int) -> tuple[FloatArray, FloatArray]:
    """A symmetric Hann window of 25 ms, and ``[fft / 2 + 1, num_bins]`` triangles of one area.

    Source: Slaney 1998, Auditory Toolbox, for the scale and the areas.
    """
    length = sampling_rate * 25 // 1000
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    top = _KNEE_MEL + np.log(sampling_rate / 2 / _KNEE_HERTZ) / _LOG_STEP
    mel = np.linspace(0.0, top, num_bins + 2)
    edges = np.where(
        mel < _KNEE_MEL, mel * _HERTZ_PER_MEL, _KNEE_HERTZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL))
    )
    bins = np.linspace(0, sampling_rate / 2, _fft_length(length) // 2 + 1)[:, None]
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (center - left), (right - bins) / (right - center))
    filters = np.maximum(triangles, 0.0) * (2.0 / (right - left))
    return window.astype(np.float32), filters.astype(np.float32)


def _fft_length(window: int) -> int:
    """The next power of two."""
    return 1 << (window - 1).bit_length()


def nemo_log_mel(samples: FloatArray, *, sampling_rate: int, num_bins: int) -> FloatArray:
    """Frames of 25 ms around every 10 ms, the first around sample 0; zeros are beyond the edges.

    Args:
        samples: [N] float32 in [-1, 1]; a piece of a recording misses the sample before its first.
        sampling_rate: Rate in Hz, a multiple of 200.
        num_bins: Mel bins from 0 Hz to Nyquist.

    Returns:
        [N // 10 ms, num_bins] float32: log of the energy plus 2^-24.

    Source: NeMo 3.0, ``AudioToMelSpectrogramPreprocessor`` with ``window_size: 0.025``, its other
    options left as they are, ``normalize`` and ``pad_to`` off, in evaluation (no dither). NeMo
    computes one frame more and does not count it.
    """
    window, filters = nemo_tables(sampling_rate, num_bins)
    shift, length = sampling_rate // 100, len(window)
    count = len(samples) // shift
    emphasised = samples.astype(np.float32, copy=True)
    emphasised[1:] -= np.float32(_PREEMPHASIS) * samples[:-1]
    padded = np.pad(emphasised, length // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::shift][:count]
    spectrum = np.fft.rfft(frames * window, _fft_length(length))
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
    logs: FloatArray = np.log(power @ filters + np.float32(ZERO_GUARD))
    return logs


def normalised_by_utterance(frames: FloatArray) -> FloatArray:
    """Frames ``[T, num_bins]`` with the mean and deviation of each bin over them taken away.

    Source: NeMo's ``normalize: per_feature``: the deviation divides by T - 1, and 1e-5 is added.
    """
    mean = frames.mean(axis=0, dtype=np.float64)
    deviation = np.sqrt(np.square(frames - mean).sum(axis=0) / max(1, len(frames) - 1))
    normalised: FloatArray = ((frames - mean) / (deviation + _SMALLEST_STD)).astype(np.float32)
    return normalised
