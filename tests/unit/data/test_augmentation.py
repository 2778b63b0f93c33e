"""Augmentation is bounded as its parameters say, and a pure function of its seed."""

from __future__ import annotations

import numpy as np
import pytest

from omnisparse.data.augmentation import (
    AugmentationConfig,
    SpecAugment,
    add_noise,
    utterance_generator,
)


def masked_widths(frames: np.ndarray) -> tuple[int, int]:
    return int((frames == 0).all(axis=1).sum()), int((frames == 0).all(axis=0).sum())


@pytest.mark.parametrize("num_frames", [5, 40, 400, 4000])
def test_time_masks_follow_the_length(num_frames: int) -> None:
    augment = SpecAugment(num_time_masks=3, time_mask_fraction=0.1, max_time_mask_frames=60)
    widths = []
    for index in range(50):
        frames = np.ones((num_frames, 80), dtype=np.float32)
        masked = augment(frames, utterance_generator(index))
        assert (frames == 1).all()
        time, bins = masked_widths(masked)
        assert time <= 3 * min(0.1 * num_frames, 60)
        assert bins <= 2 * 27
        widths.append(time)
    assert (max(widths) > 0) == (num_frames >= 10)


def test_masks_depend_on_the_key_alone() -> None:
    frames = np.ones((100, 80), dtype=np.float32)
    augment = SpecAugment()
    first = augment(frames, utterance_generator("a", 0, 1))
    np.testing.assert_array_equal(first, augment(frames, utterance_generator("a", 0, 1)))
    others = [augment(frames, utterance_generator("a", 0, epoch)) for epoch in range(2, 6)]
    assert any((first != other).any() for other in others)


def test_generator_keys_do_not_run_together() -> None:
    assert utterance_generator("a", 11).random() != utterance_generator("a1", 1).random()


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_has_the_power_asked_for(snr_db: float) -> None:
    samples = np.sin(np.arange(20000) / 10).astype(np.float32)
    noisy = add_noise(samples, snr_db, utterance_generator("noise"))
    assert noisy.dtype == np.float32
    ratio = np.mean(samples**2) / np.mean((noisy - samples) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=0.05)


def test_silence_stays_silent() -> None:
    silence = np.zeros(100, dtype=np.float32)
    assert not add_noise(silence, 10.0, utterance_generator(0)).any()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_time_masks": -1},
        {"time_mask_fraction": 1.5},
        {"noise_probability": -0.1},
        {"speed_factors": ()},
        {"speed_factors": (1.0, 0.0)},
        {"noise_snr_db": (30.0, 10.0)},
    ],
)
def test_config_names_the_bad_field(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        AugmentationConfig(**fields)  # type: ignore[arg-type]


def test_no_masks_is_no_augmentation() -> None:
    assert AugmentationConfig(num_frequency_masks=0, num_time_masks=0).spec_augment() is None
    augment = AugmentationConfig(num_time_masks=0).spec_augment()
    assert augment is not None
    assert augment.num_time_masks == 0
