"""Features against torchaudio's port of Kaldi, which shares no code with the extractor."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from omnisparse.data import features as module
from omnisparse.data.features import FeatureConfig, FeatureExtractor


def noise(num_samples: int) -> np.ndarray:
    generator = np.random.default_rng(num_samples)
    return (0.1 * generator.standard_normal(num_samples)).astype(np.float32)


def oracle(samples: np.ndarray) -> np.ndarray:
    frames = kaldi.fbank(
        torch.from_numpy(samples)[None],
        num_mel_bins=80,
        dither=0.0,
        snip_edges=False,
        high_freq=-400.0,
        sample_frequency=16000.0,
        window_type="povey",
        preemphasis_coefficient=0.97,
    )
    return frames.numpy()


# The lengths around a chunk of 500 frames meet its seams.
@pytest.mark.parametrize("num_samples", [400, 1234, 16000, 80000, 80079, 80080, 80240, 240123])
def test_fbank_is_that_of_kaldi(num_samples: int) -> None:
    samples = noise(num_samples)
    frames = FeatureExtractor().fbank(samples)
    expected = oracle(samples)
    assert frames.shape == expected.shape
    np.testing.assert_allclose(frames, expected, atol=2e-3)


def test_fbank_is_that_of_lhotse() -> None:
    """Runs of earlier versions were trained on its features; float32 rounds in another order."""
    from lhotse import Fbank, FbankConfig

    options = {"dither": 0.0, "snip_edges": False, "high_freq": -400.0}
    for rate, bins in ((16000, 80), (8000, 40)):
        config = FbankConfig(sampling_rate=rate, num_filters=bins, **options)
        samples = noise(3 * rate + 17)
        frames = FeatureExtractor(sampling_rate=rate, num_bins=bins).fbank(samples)
        np.testing.assert_allclose(frames, Fbank(config).extract(samples, rate), atol=5e-4)


def test_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = noise(50000)
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 7)
    chunked = FeatureExtractor().fbank(samples)
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 10000)
    np.testing.assert_allclose(chunked, FeatureExtractor().fbank(samples), atol=1e-5)


@pytest.mark.parametrize("num_samples", [80, 120, 199, 399])
def test_very_short_audio_has_finite_frames(num_samples: int) -> None:
    frames = FeatureExtractor().fbank(noise(num_samples))
    assert frames.shape == (FeatureExtractor().num_frames(num_samples), 80)
    assert np.isfinite(frames).all()


def test_no_frame_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 5 ms"):
        FeatureExtractor().fbank(noise(79))


@pytest.mark.parametrize("stack", [1, 3, 4])
def test_stack_pads_by_the_last_frame(stack: int) -> None:
    extractor = FeatureExtractor(num_bins=4, stack=stack)
    frames = np.arange(10 * 4, dtype=np.float32).reshape(10, 4)
    stacked = extractor.stack_frames(frames)
    assert stacked.shape == (-(-10 // stack), 4 * stack)
    flat = stacked.reshape(-1, 4)
    np.testing.assert_array_equal(flat[:10], frames)
    np.testing.assert_array_equal(flat[10:], np.repeat(frames[-1:], len(flat) - 10, axis=0))


def test_call_normalises_then_stacks() -> None:
    mean, std = list(np.linspace(-3, 3, 80)), list(np.linspace(1, 2, 80))
    extractor = FeatureExtractor(stack=3, mean=mean, std=std)
    samples = noise(16000)
    frames = (extractor.fbank(samples) - np.float32(mean)) / np.float32(std)
    features = extractor(samples)
    assert features.shape == (34, extractor.input_dim) == (34, 240)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.reshape(-1, 80)[:100], frames, rtol=1e-5, atol=1e-6)


def test_description_survives_json() -> None:
    extractor = FeatureExtractor(stack=4, mean=[0.1] * 80, std=[0.3] * 80)
    again = FeatureExtractor.from_dict(json.loads(json.dumps(extractor.to_dict())))
    np.testing.assert_array_equal(again(noise(8000)), extractor(noise(8000)))
    assert again.to_dict() == extractor.to_dict()


def test_unknown_descriptions_are_refused() -> None:
    description = FeatureExtractor().to_dict()
    with pytest.raises(ValueError, match="kaldi-fbank"):
        FeatureExtractor.from_dict(description | {"type": "mfcc"})
    with pytest.raises(ValueError, match="surprise"):
        FeatureExtractor.from_dict(description | {"surprise": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_bins": 2}, "num_bins"),
        ({"stack": 0}, "stack"),
        ({"sampling_rate": 11025}, "sampling_rate"),
    ],
)
def test_config_names_the_bad_field(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureConfig(**fields)


def test_statistics_must_fit() -> None:
    with pytest.raises(ValueError, match="together"):
        FeatureExtractor(mean=[0.0] * 80)
    with pytest.raises(ValueError, match="80 finite numbers"):
        FeatureExtractor(mean=[0.0] * 3, std=[1.0] * 80)
    with pytest.raises(ValueError, match="above 0"):
        FeatureExtractor(mean=[0.0] * 80, std=[0.0] * 80)
