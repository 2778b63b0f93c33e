"""Augmentation that depends only on a seed and the name of the utterance.

So a run that was resumed, or uses more processes, sees the same data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omnisparse.errors import NonNegativeInt, Share, check_ranges

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """Augmentation of the training data; other data is not changed."""

    num_frequency_masks: NonNegativeInt = 2
    """Bands of mel bins masked in every utterance; 0 masks none."""
    frequency_mask_bins: NonNegativeInt = 27
    """Widest band masked, in mel bins."""
    num_time_masks: NonNegativeInt = 2
    """Stretches masked in every utterance; 0 masks none."""
    time_mask_fraction: Share = 0.05
    """Longest stretch masked, as a fraction of the utterance."""
    max_time_mask_frames: NonNegativeInt = 100
    """Longest stretch masked, in frames of 10 ms, for utterances of any length."""
    unmasked_epochs: NonNegativeInt = 0
    """Epochs, at the start, without masking: an untrained encoder then learns several times
    faster."""
    speed_factors: tuple[float, ...] = (1.0,)
    """Speeds; the training set has a copy of its manifests at each speed. (0.9, 1.0, 1.1) is usual,
    and helps with voices that are higher or lower. Without manifests the embedded corpus is copied;
    beside them it is not."""
    noise_probability: Share = 0.0
    """Share of the utterances that get noise. With ``data.frames: live`` it is drawn anew in every
    epoch; stored frames have one noise each."""
    noise_snr_db: tuple[float, float] = (10.0, 30.0)
    """Range from which the signal-to-noise ratio of a noisy utterance is drawn, in dB."""
    noise: str | None = None
    """Folder of recordings of noise, at any depth, such as MUSAN's; needs ``data.frames: live``.
    null makes noise between white and pink."""
    reverb_probability: Share = 0.0
    """Share of the utterances that get the sound of a room."""
    rooms: str | None = None
    """Folder of impulse responses of rooms, at any depth, such as those of RIRS_NOISES; needs
    ``data.frames: live``."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a field is outside its range.
        """
        check_ranges(self)
        factors = self.speed_factors
        if not factors or min(factors) <= 0 or len(set(factors)) != len(factors):
            raise ValueError(f"speed_factors must be different numbers above 0, got {factors}")
        low, high = self.noise_snr_db
        if low > high:
            raise ValueError(f"noise_snr_db must be (low, high), got {self.noise_snr_db}")
        if self.noise is not None and not self.noise_probability:
            raise ValueError("noise names a folder and noise_probability is 0; legal: above 0")
        if (self.rooms is not None) != (self.reverb_probability > 0):
            raise ValueError("rooms and reverb_probability must be given together")

    def spec_augment(self) -> SpecAugment | None:
        """The masking that the fields configure; None if they configure none."""
        masks_bands = self.num_frequency_masks > 0 and self.frequency_mask_bins > 0
        masks_time = self.num_time_masks > 0 and self.time_mask_fraction > 0
        if not masks_bands and not masks_time:
            return None
        return SpecAugment(
            num_frequency_masks=self.num_frequency_masks,
            frequency_mask_bins=self.frequency_mask_bins,
            num_time_masks=self.num_time_masks,
            time_mask_fraction=self.time_mask_fraction,
            max_time_mask_frames=self.max_time_mask_frames,
        )


def utterance_generator(*key: object) -> np.random.Generator:
    """Random numbers that are a pure function of ``key``, the same on every machine.

    Args:
        key: For instance ("spec-augment", seed, epoch, utterance id).
    """
    text = "\0".join(str(part) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


class SpecAugment:
    """Masks bands of bins and stretches of time of normalised features.

    The length of a stretch is limited to a fraction of the utterance, so that a short utterance
    keeps enough frames: the masks of plain SpecAugment have a fixed largest length and can cover a
    whole short command.

    Args:
        num_frequency_masks: Bands masked.
        frequency_mask_bins: Widest band, in bins.
        num_time_masks: Stretches masked.
        time_mask_fraction: Longest stretch as a fraction of the utterance, in [0, 1].
        max_time_mask_frames: Longest stretch in frames.

    Source: Park et al. 2019, arXiv:1904.08779 (masks); Park et al. 2020, arXiv:1912.05533 (time
    masks bounded by the length of the utterance). Deviation: no time warping.
    """

    def __init__(
        self,
        *,
        num_frequency_masks: int = 2,
        frequency_mask_bins: int = 27,
        num_time_masks: int = 2,
        time_mask_fraction: float = 0.05,
        max_time_mask_frames: int = 100,
    ) -> None:
        self.num_frequency_masks = num_frequency_masks
        self.frequency_mask_bins = frequency_mask_bins
        self.num_time_masks = num_time_masks
        self.time_mask_fraction = time_mask_fraction
        self.max_time_mask_frames = max_time_mask_frames

    def __call__(self, frames: FloatArray, generator: np.random.Generator) -> FloatArray:
        """Mask a copy of ``frames``.

        Args:
            frames: [T, num_bins] float32, normalised, so that 0 is the mean of each bin.
            generator: Source of the random masks.

        Returns:
            [T, num_bins] float32, with 0 where masked.
        """
        masked = frames.copy()
        num_frames, num_bins = masked.shape
        for _ in range(self.num_frequency_masks):
            first, end = _stretch(generator, min(self.frequency_mask_bins, num_bins), num_bins)
            masked[:, first:end] = 0.0
        longest = min(int(self.time_mask_fraction * num_frames), self.max_time_mask_frames)
        for _ in range(self.num_time_masks):
            first, end = _stretch(generator, longest, num_frames)
            masked[first:end] = 0.0
        return masked


def _stretch(generator: np.random.Generator, longest: int, length: int) -> tuple[int, int]:
    width = int(generator.integers(0, longest + 1))
    first = int(generator.integers(0, length - width + 1))
    return first, first + width


def add_noise(samples: FloatArray, snr_db: float, generator: np.random.Generator) -> FloatArray:
    """Add noise between white and pink at a signal-to-noise ratio.

    Args:
        samples: [N] float32; silence is returned as it is.
        snr_db: Power of the signal over that of the noise, both over the whole utterance, in dB.
        generator: Source of the random noise.

    Returns:
        [N] float32.
    """
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    if power == 0.0:
        return samples
    # With a power of two, the FFT is fast for any length of the utterance.
    length = 1 << max(1, (len(samples) - 1).bit_length())
    spectrum = np.fft.rfft(generator.standard_normal(length))
    slope = generator.uniform(0.0, 1.0)  # power falls with frequency ** -slope
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, length)[: len(samples)]
    return add_scaled(samples, noise, snr_db)


def add_scaled(samples: FloatArray, noise: npt.NDArray[np.float64], snr_db: float) -> FloatArray:
    """Add a noise, made so loud that the signal-to-noise ratio is as asked for.

    Args:
        samples: [N] float32; silence is returned as it is.
        noise: [N] float64, changed in place; silent noise changes nothing.
        snr_db: Power of the signal over that of the noise, both over the whole utterance, in dB.

    Returns:
        [N] float32.
    """
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    power_of_noise = np.mean(np.square(noise))
    if power == 0.0 or power_of_noise == 0.0:
        return samples
    wanted = power / 10 ** (snr_db / 10)
    noise *= np.sqrt(wanted / power_of_noise)
    return np.asarray(samples + noise, dtype=np.float32)
