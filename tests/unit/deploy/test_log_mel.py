"""Features by the compiled kernels are those of training."""

from __future__ import annotations

import numpy as np
import pytest

from omnisparse.data.fbank import log_mel_frames
from omnisparse.data.features import FeatureExtractor
from omnisparse.deploy import native
from omnisparse.deploy.log_mel import native_log_mel


def signal(rate: int, samples: int) -> np.ndarray:
    """A gliding tone with harmonics that fade, in noise of -60 dB."""
    time = np.arange(samples) / rate
    phase = 2 * np.pi * (150 * time + 40 * time**2)
    tone = sum(np.sin(order * phase) / order for order in range(1, 12))
    noise = np.random.default_rng(0).standard_normal(samples)
    return (0.1 * tone * np.exp(-time) + 1e-3 * noise).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 22000, 48000])
@pytest.mark.parametrize("shifts", [2.5, 3.7, 8.5, 204.1])
@pytest.mark.parametrize("bins", [40, 80])
def test_kernels_compute_the_features_of_training(rate: int, shifts: float, bins: int) -> None:
    samples = signal(rate, round(rate * shifts / 100))
    expected = log_mel_frames(samples, sampling_rate=rate, num_bins=bins)
    found = native_log_mel(samples, sampling_rate=rate, num_bins=bins)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_silence_is_the_float_epsilon() -> None:
    found = native_log_mel(np.zeros(1600, np.float32), sampling_rate=16000, num_bins=80)
    np.testing.assert_allclose(found, np.log(np.finfo(np.float32).eps), atol=1e-5)


def test_other_filterbanks_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = signal(16000, 5000)
    for kind in ("kaldi", "torchaudio"):
        plain = FeatureExtractor(kind=kind)  # type: ignore[arg-type]
        quick = plain.by(native_log_mel)
        np.testing.assert_allclose(quick(samples), plain(samples), atol=1e-4, rtol=0)
    monkeypatch.setenv(native.CHOICE, "numpy")
    native.kernels.cache_clear()
    alone = FeatureExtractor()
    assert np.array_equal(alone.by(native_log_mel)(samples), alone(samples))
    monkeypatch.undo()
    native.kernels.cache_clear()
