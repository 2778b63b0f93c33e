"""Kaldi's log-mel filterbank in numpy: what training and a device without torch both compute."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_PREEMPHASIS = 0.97
_LOW_FREQUENCY = 20.0
_BELOW_NYQUIST = 400.0
_WINDOW_POWER = 0.85


class FilterbankTables(NamedTuple):
    """What depends on the rate and the number of bins only."""

    window: FloatArray
    """[window] the Povey window: a Hann window to the power of 0.85."""

    filters: FloatArray
    """[fft / 2, num_bins] triangles on the mel scale."""


@cache
def filterbank_tables(sampling_rate: int, num_bins: int) -> FilterbankTables:
    """The tables of a rate in Hz and a number of mel bins."""
    length = sampling_rate * 25 // 1000
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    half = _fft_length(length) // 2
    low, high = _mel(_LOW_FREQUENCY), _mel(sampling_rate / 2 - _BELOW_NYQUIST)
    edges = low + (high - low) / (num_bins + 1) * np.arange(num_bins + 2)
    bins = _mel(np.arange(half) * (sampling_rate / (2 * half)))[:, None]
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (center - left), (right - bins) / (right - center))
    return FilterbankTables(
        (hann**_WINDOW_POWER).astype(np.float32), np.maximum(triangles, 0.0).astype(np.float32)
    )


def _mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.asarray(1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0))


def _fft_length(window: int) -> int:
    """The next power of two."""
    return 1 << (window - 1).bit_length()


def mirror_edges(samples: FloatArray, shift: int, length: int) -> tuple[FloatArray, int]:
    """Samples with mirrored edges, so that each shift has a whole window around it.

    Args:
        samples: [N], at least a window.
        shift: Samples from frame to frame.
        length: Samples of a window.

    Returns:
        The samples from which a window starts every ``shift``, and the number of windows.
    """
    count = (len(samples) + shift // 2) // shift
    before = (length - shift) // 2
    after = max(0, (count - 1) * shift + length - len(samples) - before)
    edges = [samples[:before][::-1], samples, samples[len(samples) - after :][::-1]]
    return np.concatenate(edges).astype(np.float32, copy=False), count


def log_mel_frames(samples: FloatArray, *, sampling_rate: int, num_bins: int) -> FloatArray:
    """Log-mel energies of frames of 25 ms every 10 ms; the edges are mirrored.

    Each frame loses its mean, is pre-emphasised by 0.97 and windowed. The filters reach from 20 Hz
    to 400 Hz below Nyquist; energies below the float32 epsilon count as that.

    Args:
        samples: [N] float32 in [-1, 1], at least 25 ms.
        sampling_rate: Rate in Hz, a multiple of 200.
        num_bins: Mel bins.

    Returns:
        [T, num_bins] float32, T being N divided by 10 ms, rounded.

    Source: Kaldi's ``compute-fbank-feats`` with ``--dither=0 --snip-edges=false
    --high-freq=-400 --use-energy=false``.
    """
    window, filters = filterbank_tables(sampling_rate, num_bins)
    shift, length = sampling_rate // 100, len(window)
    padded, count = mirror_edges(samples, shift, length)
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::shift][:count]
    frames = frames - frames.mean(axis=1, keepdims=True)
    emphasised = np.empty_like(frames)
    emphasised[:, 1:] = frames[:, 1:] - np.float32(_PREEMPHASIS) * frames[:, :-1]
    emphasised[:, 0] = np.float32(1 - _PREEMPHASIS) * frames[:, 0]
    emphasised *= window
    spectrum = np.fft.rfft(emphasised, _fft_length(length))[:, : len(filters)]
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
    logs: FloatArray = np.log(np.maximum(power @ filters, np.finfo(np.float32).eps))
    return logs
