"""Resampling of a stream; the joined pieces equal the resampled whole recording."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# Zero crossings of the sinc kernel, and its cutoff below Nyquist, as torchaudio has them.
_KERNEL_CROSSINGS = 6
_ROLLOFF = 0.99

_LARGEST_PATTERN = 1 << 22
"""Input samples times output samples of one kernel period; 44.1 to 16 kHz has 7e4."""


class StreamingResampler:
    """Resamples a growing recording.

    Args:
        rate: Input rate in Hz, >= 1.
        target: Output rate in Hz, >= 1.

    Deviation: the kernels of rates without a common divisor (15,999 and 16,000 Hz) need gigabytes.
    Such a ratio is replaced by a ratio that differs by less than a thousandth (here, by 1).
    """

    def __init__(self, rate: int, target: int) -> None:
        self._step, self._new_step = resampling_ratio(rate, target)
        width = _KERNEL_CROSSINGS * self._step / (min(self._step, self._new_step) * _ROLLOFF)
        # Counted in steps, the period of the kernels.
        self._margin = math.ceil(width / self._step)
        same = self._step == self._new_step
        self._kernels = None if same else _kernels(self._step, self._new_step)
        self._samples = np.zeros(0, dtype=np.float32)
        self._num_dropped = 0  # steps removed from the front of the buffer
        self._num_done = 0  # steps already returned

    def accept(self, samples: FloatArray, *, final: bool = False) -> FloatArray:
        """Processes the next samples and returns the output that is complete.

        Args:
            samples: [N] float32, N may be 0.
            final: Whether the recording ends with them.

        Returns:
            [M] float32; over the whole recording ``ceil(N * target / rate)`` samples, or the number
            for the replaced ratio.
        """
        if self._step == self._new_step:
            return samples
        self._samples = np.concatenate([self._samples, samples])
        num_ready = len(self._samples) // self._step + self._num_dropped - self._margin
        if (num_ready <= self._num_done and not final) or len(self._samples) == 0:
            return self._samples[:0]
        resampled = self._resample(self._samples)
        first = (self._num_done - self._num_dropped) * self._new_step
        if final:
            return resampled[first:]
        ready = resampled[first : (num_ready - self._num_dropped) * self._new_step]
        self._num_done = num_ready
        keep_from = max(self._num_dropped, num_ready - self._margin)
        self._samples = self._samples[(keep_from - self._num_dropped) * self._step :].copy()
        self._num_dropped = keep_from
        return ready

    def _resample(self, samples: FloatArray) -> FloatArray:
        """All of a buffer, silence before and after it: [N] to [ceil(N * new / old)]."""
        assert self._kernels is not None
        width = (self._kernels.shape[0] - self._step) // 2
        padded = np.pad(samples, (width, width + self._step))
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(self._kernels))
        wanted = -(-len(samples) * self._new_step // self._step)
        resampled: FloatArray = (windows[:: self._step] @ self._kernels).reshape(-1)[:wanted]
        return np.asarray(resampled, np.float32)


@lru_cache(maxsize=8)
def _kernels(step: int, new_step: int) -> FloatArray:
    """A windowed sinc for each sample that goes out in a repetition.

    Args:
        step: Samples in of one repetition.
        new_step: Samples out.

    Returns:
        [step + 2 * width, new_step] float32.

    Source: Julius O. Smith, "Digital audio resampling", https://ccrma.stanford.edu/~jos/resample/;
    the window is that of torchaudio's ``sinc_interp_hann``.
    """
    base = min(step, new_step) * _ROLLOFF
    width = math.ceil(_KERNEL_CROSSINGS * step / base)
    inputs = np.arange(-width, width + step)[:, None] / step
    times = (inputs - np.arange(new_step) / new_step) * base
    times = np.clip(times, -_KERNEL_CROSSINGS, _KERNEL_CROSSINGS)
    window = np.cos(times * (np.pi / _KERNEL_CROSSINGS / 2)) ** 2
    return np.asarray(np.sinc(times) * window * (base / step), np.float32)


def resampling_ratio(rate: int, target: int) -> tuple[int, int]:
    """Samples in and samples out of one repetition of the kernels.

    Args:
        rate: Rate of what comes in, in Hz, >= 1.
        target: Rate of what goes out, in Hz, >= 1.
    """
    exact = Fraction(rate, target)
    if exact.numerator * exact.denominator > _LARGEST_PATTERN:
        limit = math.isqrt(_LARGEST_PATTERN * target // rate)
        exact = exact.limit_denominator(max(1, limit))
    return exact.numerator, exact.denominator
