"""Changes the sampling rate of a stream; joined, the pieces are the whole, resampled."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float32]

# torchaudio's defaults: zero crossings of the sinc kernel, and its cutoff below Nyquist.
_KERNEL_CROSSINGS = 6
_ROLLOFF = 0.99


class StreamingResampler:
    """Resamples a growing recording.

    Args:
        rate: Rate of what comes in, in Hz, >= 1.
        target: Rate of what goes out, in Hz, >= 1.
    """

    def __init__(self, rate: int, target: int) -> None:
        from torchaudio.transforms import Resample

        divisor = math.gcd(rate, target)
        self._step, self._new_step = rate // divisor, target // divisor
        width = _KERNEL_CROSSINGS * self._step / (min(self._step, self._new_step) * _ROLLOFF)
        # Counted in steps, of which the pattern of the kernels repeats.
        self._margin = math.ceil(width / self._step)
        self._resample = Resample(
            rate, target, lowpass_filter_width=_KERNEL_CROSSINGS, rolloff=_ROLLOFF
        )
        self._samples = np.zeros(0, dtype=np.float32)
        self._num_dropped = 0  # steps let go from the front of the buffer
        self._num_done = 0  # steps already given out

    def accept(self, samples: FloatArray, *, final: bool = False) -> FloatArray:
        """Takes the next samples and gives what is certain by now.

        Args:
            samples: [N] float32, N may be 0.
            final: Whether the recording ends with them.

        Returns:
            [M] float32; over the whole recording ``ceil(N * target / rate)`` samples.
        """
        if self._step == self._new_step:
            return samples
        self._samples = np.concatenate([self._samples, samples])
        num_ready = len(self._samples) // self._step + self._num_dropped - self._margin
        if (num_ready <= self._num_done and not final) or len(self._samples) == 0:
            return self._samples[:0]
        resampled: FloatArray = self._resample(torch.from_numpy(self._samples)).numpy()
        first = (self._num_done - self._num_dropped) * self._new_step
        if final:
            return resampled[first:]
        ready = resampled[first : (num_ready - self._num_dropped) * self._new_step]
        self._num_done = num_ready
        keep_from = max(self._num_dropped, num_ready - self._margin)
        self._samples = self._samples[(keep_from - self._num_dropped) * self._step :].copy()
        self._num_dropped = keep_from
        return ready
