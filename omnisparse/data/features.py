"""Kaldi-compatible log-mel filterbanks, normalised per corpus and stacked.

The options are those of sherpa-onnx and icefall: 80 bins, 25 ms Povey windows every 10 ms, no
dither, edges kept, samples in [-1, 1], highest frequency 400 Hz below Nyquist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from einops import rearrange

from omnisparse.data.fbank import log_mel_frames
from omnisparse.errors import PositiveInt, Range, check_ranges

FloatArray = npt.NDArray[np.float32]

# Frames computed at once: an hour of audio must not need gigabytes, and 5 s stay in the cache.
_CHUNK_FRAMES = 500
# A frame reaches 7.5 ms before and after its own shift; one neighbour on each side is enough.
_MARGIN_FRAMES = 1
# Below this many samples the edges would mirror more audio than there is.
_MIN_SAMPLES_SECONDS = 0.025


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureConfig:
    """Shape of the features that a model reads."""

    num_bins: Annotated[int, Range(minimum=4)] = 80
    """Mel bins of a frame."""
    stack: PositiveInt = 3
    """Frames of 10 ms joined into one: 3 suits LAS (30 ms), 4 the transducer (40 ms)."""
    sampling_rate: Annotated[int, Range(minimum=8000, maximum=384_000)] = 16000
    """Rate of the audio, in Hz."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a field is outside its range.
        """
        check_ranges(self)
        if self.sampling_rate % 200:
            raise ValueError(
                f"sampling_rate is {self.sampling_rate}; it must be a multiple of 200 Hz, so that "
                "5 ms are whole samples"
            )


class FeatureExtractor:
    """Computes the features that a model reads from samples.

    Args:
        num_bins: Mel bins of a frame.
        stack: Frames of 10 ms joined into one.
        sampling_rate: Rate of the audio, in Hz.
        mean: Mean of each bin over the training data, [num_bins]; None normalises nothing.
        std: Standard deviation of each bin, above 0, [num_bins]; given with ``mean``.

    Raises:
        ValueError: If a size is out of range, or ``mean`` and ``std`` do not fit ``num_bins``.
    """

    def __init__(
        self,
        *,
        num_bins: int = 80,
        stack: int = 3,
        sampling_rate: int = 16000,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        FeatureConfig(num_bins=num_bins, stack=stack, sampling_rate=sampling_rate)
        self.num_bins = num_bins
        self.stack = stack
        self.sampling_rate = sampling_rate
        self.mean = _statistic("mean", mean, num_bins)
        self.std = _statistic("std", std, num_bins)
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        if self.std is not None and float(self.std.min()) <= 0:
            raise ValueError(f"std must be above 0 for every bin, got {float(self.std.min())}")

    @property
    def input_dim(self) -> int:
        """Width of a stacked frame."""
        return self.num_bins * self.stack

    def num_frames(self, num_samples: int) -> int:
        """Number of frames of 10 ms, before stacking, for a number of samples."""
        return num_frames(num_samples, self.sampling_rate)

    def fbank(self, samples: FloatArray) -> FloatArray:
        """Log-mel energies.

        Args:
            samples: [N] float32 in [-1, 1], at least half a frame shift (5 ms).

        Returns:
            [T, num_bins] float32, T being `num_frames(N)`.

        Raises:
            ValueError: If ``samples`` is not a vector or shorter than 5 ms.
        """
        if samples.ndim != 1 or self.num_frames(len(samples)) < 1:
            raise ValueError(f"samples must be [N] with at least 5 ms, got shape {samples.shape}")
        shift = self.sampling_rate // 100
        total = self.num_frames(len(samples))
        frames = np.empty((total, self.num_bins), dtype=np.float32)
        for first in range(0, total, _CHUNK_FRAMES):
            end = min(first + _CHUNK_FRAMES, total)
            if total - end < 2 * _MARGIN_FRAMES:  # no chunk may consist only of margins
                end = total
            before = max(0, first - _MARGIN_FRAMES)
            stop = len(samples) if end == total else (end + _MARGIN_FRAMES) * shift
            chunk = self._extract(samples[before * shift : stop])
            frames[first:end] = chunk[first - before : first - before + end - first]
            if end == total:
                break
        return frames

    def _extract(self, samples: FloatArray) -> FloatArray:
        count = self.num_frames(len(samples))
        smallest = round(_MIN_SAMPLES_SECONDS * self.sampling_rate)
        if len(samples) < smallest:
            samples = np.pad(samples, (0, smallest - len(samples)))
        frames = log_mel_frames(samples, sampling_rate=self.sampling_rate, num_bins=self.num_bins)
        return frames[:count]

    def normalise(self, frames: FloatArray) -> FloatArray:
        """Subtract the mean of each bin and divide by its standard deviation.

        Args:
            frames: [T, num_bins].

        Returns:
            [T, num_bins] float32; ``frames`` itself if there are no statistics.
        """
        if self.mean is None or self.std is None:
            return frames
        normalised = frames - self.mean
        normalised /= self.std
        return normalised

    def stack_frames(self, frames: FloatArray) -> FloatArray:
        """Join neighbouring frames.

        Args:
            frames: [T, num_bins]; the last one is repeated to fill the last stack.

        Returns:
            [ceil(T / stack), num_bins * stack].
        """
        missing = -len(frames) % self.stack
        if missing:
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        return rearrange(frames, "(time stack) bins -> time (stack bins)", stack=self.stack)

    def __call__(self, samples: FloatArray) -> FloatArray:
        """Features of an utterance.

        Args:
            samples: [N] float32 in [-1, 1].

        Returns:
            [ceil(T / stack), input_dim] float32, normalised.
        """
        return self.stack_frames(self.normalise(self.fbank(samples)))

    def to_dict(self) -> dict[str, Any]:
        """Everything needed to compute the same features, as JSON."""
        return {
            "type": "kaldi-fbank",
            "num_bins": self.num_bins,
            "stack": self.stack,
            "sampling_rate": self.sampling_rate,
            "mean": None if self.mean is None else self.mean.tolist(),
            "std": None if self.std is None else self.std.tolist(),
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> FeatureExtractor:
        """The extractor that `to_dict` described.

        Raises:
            ValueError: If ``description`` is of another type or has unknown or missing keys.
        """
        fields = dict(description)
        kind = fields.pop("type", None)
        if kind != "kaldi-fbank":
            raise ValueError(f"features must be of type kaldi-fbank, got {kind!r}")
        expected = {"num_bins", "stack", "sampling_rate", "mean", "std"}
        if set(fields) != expected:
            raise ValueError(f"features must have {sorted(expected)}, got {sorted(fields)}")
        return cls(**fields)


def num_frames(num_samples: int, sampling_rate: int = 16000) -> int:
    """Number of frames of 10 ms with edges kept: rounded to the nearest whole frame."""
    shift = sampling_rate // 100
    return (num_samples + shift // 2) // shift


def _statistic(name: str, values: Sequence[float] | None, num_bins: int) -> FloatArray | None:
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float32)
    if array.shape != (num_bins,) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be {num_bins} finite numbers, got shape {array.shape}")
    return array
