"""Log-mel filterbanks, normalised and stacked: Kaldi's, torchaudio's or NeMo's.

The options of the first are those of sherpa-onnx and icefall: 80 bins, 25 ms Povey windows every
10 ms, no dither, edges kept, samples in [-1, 1], highest frequency 400 Hz below Nyquist.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from einops import rearrange

from omnisparse.data.fbank import log_mel_frames
from omnisparse.data.log_mel import piecewise_log_mel
from omnisparse.data.nemo_mel import nemo_log_mel, normalised_by_utterance
from omnisparse.errors import PositiveInt, Range, check_ranges

FloatArray = npt.NDArray[np.float32]

FeatureKind = Literal["kaldi", "torchaudio", "nemo"]
Normalisation = Literal["corpus", "utterance", "none"]


class LogMel(Protocol):
    """Computes log-mel energies ``[T, num_bins]`` of samples ``[N]`` of at least 25 ms."""

    def __call__(self, samples: FloatArray, *, sampling_rate: int, num_bins: int) -> FloatArray:
        """The energies."""
        ...


# Frames computed at once: an hour of audio must not need gigabytes, and 5 s stay in the cache.
_CHUNK_FRAMES = 500
# Kaldi's frame reaches 7.5 ms before and after its own shift; the others' are around its start, and
# reach 12.5 ms before it. Two neighbours on each side are enough for all.
_MARGIN_FRAMES: dict[FeatureKind, int] = {"kaldi": 1, "torchaudio": 2, "nemo": 2}
# Below this many samples the edges would mirror more audio than there is. NeMo's are zeros.
_MIN_SAMPLES_SECONDS: dict[FeatureKind, float] = {"kaldi": 0.025, "torchaudio": 0.025, "nemo": 0.0}
_COMPUTE = {"kaldi": log_mel_frames, "torchaudio": piecewise_log_mel, "nemo": nemo_log_mel}


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureConfig:
    """Shape of the features that a model reads."""

    num_bins: Annotated[int, Range(minimum=4)] = 80
    """Mel bins of a frame."""
    stack: PositiveInt = 3
    """Frames of 10 ms joined into one: 3 suits LAS (30 ms), 4 the transducer (40 ms)."""
    sampling_rate: Annotated[int, Range(minimum=8000, maximum=384_000)] = 16000
    """Rate of the audio, in Hz."""
    kind: FeatureKind = "kaldi"
    """Filterbanks of Kaldi, of torchaudio's RNN-T pipelines, or of NeMo's recognisers (for a net
    that starts from one)."""
    normalize: Normalisation = "corpus"
    """What takes mean and deviation away: statistics of the training data; those of each
    ``utterance``, as NeMo's ``per_feature`` does, which needs its end, so that such a net cannot
    stream; or ``none``, as NeMo's streaming nets have it."""

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
        kind: Whose filterbanks.
        per_utterance: Normalise by the mean and deviation of each utterance instead.

    Raises:
        ValueError: If a size is out of range, ``mean`` and ``std`` do not fit ``num_bins``, or are
            given for ``per_utterance``.
    """

    def __init__(
        self,
        *,
        num_bins: int = 80,
        stack: int = 3,
        sampling_rate: int = 16000,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        kind: FeatureKind = "kaldi",
        per_utterance: bool = False,
    ) -> None:
        FeatureConfig(num_bins=num_bins, stack=stack, sampling_rate=sampling_rate)
        if kind not in _TYPES:
            raise ValueError(f"kind is {kind!r}; legal: {', '.join(_TYPES)}")
        self.kind: FeatureKind = kind
        self._log_mel: LogMel = _COMPUTE[kind]
        self.num_bins = num_bins
        self.stack = stack
        self.sampling_rate = sampling_rate
        self.mean = _statistic("mean", mean, num_bins)
        self.std = _statistic("std", std, num_bins)
        self.per_utterance = per_utterance
        if per_utterance and self.mean is not None:
            raise ValueError("features that are normalised per utterance have no mean and std")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        if self.std is not None and float(self.std.min()) <= 0:
            raise ValueError(f"std must be above 0 for every bin, got {float(self.std.min())}")

    def by(self, log_mel: LogMel) -> FeatureExtractor:
        """The same extractor, Kaldi's log-mel energies computed by another function."""
        other = copy.copy(self)
        if self.kind == "kaldi":
            other._log_mel = log_mel
        return other

    @property
    def normalisation(self) -> Normalisation:
        """What takes mean and deviation away."""
        if self.per_utterance:
            return "utterance"
        return "none" if self.mean is None else "corpus"

    @property
    def input_dim(self) -> int:
        """Width of a stacked frame."""
        return self.num_bins * self.stack

    def num_frames(self, num_samples: int) -> int:
        """Number of frames of 10 ms, before stacking, for a number of samples."""
        return num_frames(num_samples, self.sampling_rate, self.kind)

    def fbank(self, samples: FloatArray) -> FloatArray:
        """Log-mel energies.

        Args:
            samples: [N] float32 in [-1, 1], at least half a frame shift (5 ms; NeMo's, 10 ms).

        Returns:
            [T, num_bins] float32, T being `num_frames(N)`.

        Raises:
            ValueError: If ``samples`` is not a vector or shorter than that.
        """
        if samples.ndim != 1 or self.num_frames(len(samples)) < 1:
            least = 10 if self.kind == "nemo" else 5
            raise ValueError(
                f"samples must be [N] with at least {least} ms, got shape {samples.shape}"
            )
        shift = self.sampling_rate // 100
        total = self.num_frames(len(samples))
        margin = _MARGIN_FRAMES[self.kind]
        frames = np.empty((total, self.num_bins), dtype=np.float32)
        for first in range(0, total, _CHUNK_FRAMES):
            end = min(first + _CHUNK_FRAMES, total)
            if total - end < 2 * margin:  # no chunk may consist only of margins
                end = total
            before = max(0, first - margin)
            stop = len(samples) if end == total else (end + margin) * shift
            chunk = self._extract(samples[before * shift : stop])
            frames[first:end] = chunk[first - before : first - before + end - first]
            if end == total:
                break
        return frames

    def _extract(self, samples: FloatArray) -> FloatArray:
        count = self.num_frames(len(samples))
        smallest = round(_MIN_SAMPLES_SECONDS[self.kind] * self.sampling_rate)
        if len(samples) < smallest:
            samples = np.pad(samples, (0, smallest - len(samples)))
        frames = self._log_mel(samples, sampling_rate=self.sampling_rate, num_bins=self.num_bins)
        return frames[:count]

    def normalise(self, frames: FloatArray) -> FloatArray:
        """Subtract the mean of each bin and divide by its standard deviation.

        Args:
            frames: [T, num_bins]; with ``per_utterance`` all of an utterance.

        Returns:
            [T, num_bins] float32; ``frames`` itself if there are no statistics.
        """
        if self.per_utterance:
            return normalised_by_utterance(frames)
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
        # Only where it is so: what older versions wrote and read stays as it is.
        more = {"per_utterance": True} if self.per_utterance else {}
        return {
            **more,
            "type": _TYPES[self.kind],
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
        name = fields.pop("type", None)
        kinds = [kind for kind, known in _TYPES.items() if known == name]
        if not kinds:
            legal = " or ".join(_TYPES.values())
            raise ValueError(f"features must be of type {legal}, got {name!r}")
        per_utterance = fields.pop("per_utterance", False)
        if not isinstance(per_utterance, bool):
            raise ValueError(f"per_utterance must be true or false, got {per_utterance!r}")
        expected = {"num_bins", "stack", "sampling_rate", "mean", "std"}
        if set(fields) != expected:
            raise ValueError(f"features must have {sorted(expected)}, got {sorted(fields)}")
        return cls(**fields, kind=kinds[0], per_utterance=per_utterance)

    def normalised_by(self, normalize: Normalisation) -> FeatureExtractor:
        """The same features, of which ``normalize`` takes mean and deviation away.

        ``corpus`` keeps the statistics that are there.
        """
        if normalize == "corpus":
            return self
        return FeatureExtractor(
            num_bins=self.num_bins,
            stack=self.stack,
            sampling_rate=self.sampling_rate,
            kind=self.kind,
            per_utterance=normalize == "utterance",
        )


_TYPES: dict[FeatureKind, str] = {
    "kaldi": "kaldi-fbank",
    "torchaudio": "torchaudio-log-mel",
    "nemo": "nemo-log-mel",
}
"""Names of the kinds in a description."""


def num_frames(num_samples: int, sampling_rate: int = 16000, kind: FeatureKind = "kaldi") -> int:
    """Number of frames of 10 ms with edges kept.

    Kaldi's are as many as there are shifts, rounded; NeMo's rounded down; torchaudio's are those
    around 0, 10, ... ms.
    """
    shift = sampling_rate // 100
    if kind == "torchaudio":
        return num_samples // shift + 1
    if kind == "nemo":
        return num_samples // shift
    return (num_samples + shift // 2) // shift


def _statistic(name: str, values: Sequence[float] | None, num_bins: int) -> FloatArray | None:
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float32)
    if array.shape != (num_bins,) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be {num_bins} finite numbers, got shape {array.shape}")
    return array
