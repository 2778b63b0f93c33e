"""NeMo's features against their steps written out with torch and torchaudio.

``tests/interop/test_nemo.py`` compares them with NeMo itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet
from torchaudio.functional import melscale_fbanks

from omnisparse.data import features as module
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.features import FeatureConfig, FeatureExtractor
from omnisparse.data.live_features import LiveFeatures
from omnisparse.data.nemo_mel import nemo_tables
from omnisparse.deploy.streaming import StreamingFeatures
from omnisparse.errors import UsageError


def noise(count: int, seed: int = 0) -> np.ndarray:
    samples = 0.1 * np.random.default_rng(seed + count).standard_normal(count).astype(np.float32)
    samples[count // 2 :] *= 1e-4  # where 2^-24 counts
    return samples


def oracle(samples: np.ndarray, rate: int = 16000, bins: int = 80) -> np.ndarray:
    length = rate // 40
    size = 1 << (length - 1).bit_length()
    whole = torch.from_numpy(samples)
    emphasised = torch.cat([whole[:1], whole[1:] - 0.97 * whole[:-1]])
    spectrum = torch.stft(
        emphasised,
        n_fft=size,
        hop_length=rate // 100,
        win_length=length,
        window=torch.hann_window(length, periodic=False),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    filters = melscale_fbanks(
        size // 2 + 1, 0.0, rate / 2, bins, rate, norm="slaney", mel_scale="slaney"
    )
    frames = (spectrum.abs().square().t() @ filters + 2**-24).log()
    return frames[: len(samples) // (rate // 100)].numpy()


def nemo(**options) -> FeatureExtractor:
    return FeatureExtractor(stack=1, kind="nemo", **options)


# The lengths around a chunk of 500 frames meet its seams.
@pytest.mark.parametrize("count", [160, 399, 1000, 16000, 80000, 80079, 80320, 80480, 240_123])
def test_frames_are_theirs(count: int) -> None:
    found = nemo().fbank(noise(count))
    assert found.shape == (count // 160, 80) == (nemo().num_frames(count), 80)
    np.testing.assert_allclose(found, oracle(noise(count)), rtol=0, atol=1e-4)


def test_frames_at_another_rate_are_theirs() -> None:
    found = nemo(sampling_rate=8000, num_bins=64).fbank(noise(8123))
    np.testing.assert_allclose(found, oracle(noise(8123), 8000, 64), rtol=0, atol=1e-4)


def test_filters_are_slaneys() -> None:
    expected = melscale_fbanks(257, 0.0, 8000.0, 80, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(nemo_tables(16000, 80)[1], expected.numpy(), atol=1e-7)


def test_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nemo().fbank(noise(50_000))
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 7)
    np.testing.assert_allclose(nemo().fbank(noise(50_000)), whole, rtol=0, atol=1e-5)


def test_less_than_a_frame_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 10 ms"):
        nemo().fbank(noise(159))


@pytest.mark.parametrize("step", [37, 160, 1601, 9000])
@pytest.mark.parametrize("stack", [1, 4])
def test_streamed_features_are_those_of_the_whole(step: int, stack: int) -> None:
    extractor = FeatureExtractor(stack=stack, kind="nemo")
    samples = noise(9_511)
    stream, parts = StreamingFeatures(extractor), []
    for start in range(0, len(samples), step):
        final = start + step >= len(samples)
        parts.append(stream.accept(samples[start : start + step], final=final))
    np.testing.assert_allclose(np.concatenate(parts), extractor(samples), rtol=0, atol=1e-5)


def test_normalised_by_the_utterance() -> None:
    extractor = nemo(per_utterance=True)
    samples = noise(16_000)
    frames = torch.from_numpy(oracle(samples))
    expected = (frames - frames.mean(0)) / (frames.std(0) + 1e-5)
    np.testing.assert_allclose(extractor(samples), expected.numpy(), rtol=0, atol=1e-4)
    assert np.isfinite(extractor(noise(160))).all()  # a single frame has no deviation


def test_what_is_normalised_by_the_utterance_does_not_stream() -> None:
    with pytest.raises(UsageError, match="cannot stream: its features are normalised by the whole"):
        StreamingFeatures(nemo(per_utterance=True))


def test_descriptions_survive_json() -> None:
    for extractor in (nemo(), nemo(per_utterance=True), nemo(mean=[0.5] * 80, std=[2.0] * 80)):
        again = FeatureExtractor.from_dict(json.loads(json.dumps(extractor.to_dict())))
        assert again.to_dict() == extractor.to_dict()
        assert again.normalisation == extractor.normalisation
        np.testing.assert_array_equal(again(noise(3000)), extractor(noise(3000)))
    assert "per_utterance" not in nemo().to_dict()
    with pytest.raises(ValueError, match="per_utterance must be true or false"):
        FeatureExtractor.from_dict(nemo().to_dict() | {"per_utterance": 1})
    with pytest.raises(ValueError, match="have no mean and std"):
        nemo(per_utterance=True, mean=[0.0] * 80, std=[1.0] * 80)


def test_a_configuration_chooses_what_is_taken_away() -> None:
    given = nemo(mean=[0.5] * 80, std=[2.0] * 80)
    assert given.normalised_by("corpus") is given
    assert given.normalised_by("none").normalisation == "none"
    assert given.normalised_by("utterance").normalisation == "utterance"
    assert FeatureConfig(kind="nemo", normalize="utterance").normalize == "utterance"


def test_stored_and_live_frames_are_of_the_kind(cuts: CutSet, tmp_path: Path) -> None:
    stored = FeatureStore.build(cuts, tmp_path / "store", kind="nemo", num_jobs=1)
    live = LiveFeatures.prepare(cuts, tmp_path / "live", kind="nemo", num_jobs=1)
    for source in (stored, live):
        assert source.extractor(4).kind == "nemo"
        for cut in cuts:
            assert len(source.frames(cut.id)) == cut.num_samples // 160
