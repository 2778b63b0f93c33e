"""Noise and rooms: powers and convolutions computed by hand, draws by (seed, epoch, name)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnisparse.data.augmentation import AugmentationConfig
from omnisparse.data.batching import DataConfig
from omnisparse.data.room import Recordings, RoomAugment, reverberate
from omnisparse.errors import DataError

RATE = 16000
SPEECH = np.sin(np.arange(8000) / 9).astype(np.float32) / 2


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")


@pytest.fixture
def musan(tmp_path: Path) -> Path:
    """A folder as MUSAN has it, each recording of one constant value."""
    folder = tmp_path / "musan"
    for number, name in enumerate(["noise/free-sound/a", "music/fma/b", "speech/us-gov/c"]):
        write(folder / f"{name}.wav", np.full(20000 + number, (number + 1) / 8, np.float32))
    (folder / "noise" / "ANNOTATIONS").write_text("no sound\n")
    return folder


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0])
def test_recorded_noise_has_the_power_asked_for(musan: Path, snr_db: float) -> None:
    augment = RoomAugment(
        noises=Recordings(musan, "noise"), noise_probability=1.0, noise_snr_db=(snr_db, snr_db)
    )
    noisy = augment(SPEECH, RATE, "a", 0)
    added = noisy.astype(np.float64) - SPEECH
    # The noise is a constant, whose power is its square: known without any measurement.
    expected = np.sqrt(np.mean(SPEECH.astype(np.float64) ** 2) / 10 ** (snr_db / 10))
    np.testing.assert_allclose(added, expected, atol=1e-6)


def test_noise_is_a_stretch_of_a_recording(tmp_path: Path) -> None:
    recorded = np.random.default_rng(0).standard_normal(40000).astype(np.float32) / 8
    write(tmp_path / "n" / "a.wav", recorded)
    augment = RoomAugment(
        noises=Recordings(tmp_path / "n", "noise"), noise_probability=1.0, noise_snr_db=(0.0, 0.0)
    )
    added = augment(SPEECH, RATE, "a", 0).astype(np.float64) - SPEECH
    matches = np.correlate(recorded.astype(np.float64), added, "valid")
    stretch = recorded[matches.argmax() : matches.argmax() + len(SPEECH)]
    np.testing.assert_allclose(added / added.std(), stretch / stretch.std(), atol=1e-4)


def test_short_noise_is_repeated_and_other_rates_are_brought_to_ours(tmp_path: Path) -> None:
    write(tmp_path / "n" / "short.wav", np.tile([0.1, -0.1], 300).astype(np.float32), 8000)
    augment = RoomAugment(
        noises=Recordings(tmp_path / "n", "noise"), noise_probability=1.0, noise_snr_db=(5.0, 5.0)
    )
    added = augment(SPEECH, RATE, "a", 0).astype(np.float64) - SPEECH
    assert 10 * np.log10(np.mean(SPEECH**2) / np.mean(added**2)) == pytest.approx(5.0, abs=0.01)


def test_a_room_is_a_convolution() -> None:
    response = np.zeros(300, np.float32)
    response[[20, 21, 120]] = [1.0, 0.5, -0.25]  # the direct sound comes after 20 samples
    wet = np.convolve(SPEECH.astype(np.float64), response.astype(np.float64))[20 : 20 + 8000]
    wet *= np.sqrt(np.mean(SPEECH.astype(np.float64) ** 2) / np.mean(wet**2))
    np.testing.assert_allclose(reverberate(SPEECH, response), wet, atol=1e-6)
    alone = np.zeros(50, np.float32)
    alone[7] = -0.3  # a room without walls: nothing but the sign
    np.testing.assert_allclose(reverberate(SPEECH, alone), -SPEECH, atol=1e-6)
    np.testing.assert_array_equal(reverberate(SPEECH, np.zeros(9, np.float32)), SPEECH)


def test_draws_are_those_of_seed_epoch_and_name(musan: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    for number in range(3):
        write(tmp_path / "rirs" / f"{number}.wav", generator.standard_normal((400, 2)) / 8)

    def make(seed: int) -> RoomAugment:
        return RoomAugment(
            noises=Recordings(musan, "noise"),
            noise_probability=0.5,
            responses=Recordings(tmp_path / "rirs", "rooms"),
            reverb_probability=0.5,
            seed=seed,
        )

    def heard(seed: int, epoch: int, name: str = "a") -> bytes:
        return make(seed)(SPEECH, RATE, name, epoch).tobytes()

    every = [heard(seed, epoch) for seed in range(2) for epoch in range(20)]
    assert every == [heard(seed, epoch) for seed in range(2) for epoch in range(20)]
    assert len(set(every[:20])) > 10
    assert every[:20] != every[20:]
    assert every.count(SPEECH.tobytes()) in range(3, 18)  # a quarter stay as they are
    assert {heard(0, epoch, "b") for epoch in range(20)} != set(every[:20])


def test_probabilities_are_kept(musan: Path) -> None:
    augment = RoomAugment(noises=Recordings(musan, "noise"), noise_probability=0.3, seed=1)
    changed = sum(not np.array_equal(augment(SPEECH, RATE, str(n), 0), SPEECH) for n in range(400))
    assert 90 < changed < 150


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"noise .*none: no such folder"):
        Recordings(tmp_path / "none", "noise")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no sound files in it"):
        Recordings(tmp_path / "empty", "noise")
    (tmp_path / "empty" / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"bad\.wav: no audio format"):
        Recordings(tmp_path / "empty", "noise")


def test_keys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="noise_probability is 0"):
        AugmentationConfig(noise="musan")
    with pytest.raises(ValueError, match="rooms and reverb_probability"):
        AugmentationConfig(reverb_probability=0.5)
    noisy = AugmentationConfig(noise="musan", noise_probability=0.5)
    with pytest.raises(ValueError, match=r"augmentation\.noise needs frames: live"):
        DataConfig(augmentation=noisy)
    DataConfig(augmentation=noisy, frames="live")
