"""Audio is heard alike wherever it is read, and what cannot be read says why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from omnisparse.data import audio
from omnisparse.data.audio import read_samples
from omnisparse.data.corpora import load_manifest, perturb_speed
from omnisparse.data.evaluation_batches import EvaluationBatches
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.deploy.recording import read_audio
from omnisparse.errors import DataError

RATE = 16000


def stereo_manifest(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    samples = 0.1 * generator.standard_normal((RATE, 2))
    soundfile.write(folder / "stereo.wav", samples, RATE, subtype="FLOAT")
    manifest = folder / "stereo.jsonl"
    record = {"id": "a", "audio_filepath": "stereo.wav", "duration": 1.0, "text": "open the door"}
    manifest.write_text(json.dumps(record) + "\n")
    return manifest


def test_channels_are_averaged_in_training_as_in_evaluation(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    cuts = load_manifest(stereo_manifest(tmp_path))
    heard, rate = read_audio(tmp_path / "stereo.wav")  # as `transcribe` hears it
    assert rate == RATE
    np.testing.assert_allclose(read_samples(next(iter(cuts))), heard, atol=1e-7)
    expected = FeatureExtractor().fbank(heard)
    store = FeatureStore.build(cuts, tmp_path / "store", num_jobs=1)
    np.testing.assert_allclose(store.frames("a"), expected, atol=0.02)
    batches = EvaluationBatches(cuts, extractor=FeatureExtractor(stack=1), tokenizer=tokenizer)
    np.testing.assert_allclose(next(iter(batches)).features[0].numpy(), expected, atol=1e-4)
    (slow,) = perturb_speed(cuts, (0.9,))
    assert read_samples(slow).shape == (slow.num_samples,)


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_another_speed_is_what_lhotse_makes(
    cuts: CutSet, speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = list(perturb_speed(cuts, (speed,)))[:5]
    expected = [cut.load_audio()[0] for cut in copies]
    part = copies[0].truncate(offset=0.05, duration=0.1)
    expected_part = part.load_audio()[0]
    np.testing.assert_allclose(read_samples(part), expected_part, atol=1e-6)

    def refuse(cut: object) -> None:
        raise AssertionError("a whole file was put together by lhotse")

    monkeypatch.setattr(audio, "_read_composed", refuse)
    for cut, samples in zip(copies, expected, strict=True):
        np.testing.assert_allclose(read_samples(cut), samples, atol=1e-6)


def test_a_file_that_is_too_short_for_another_speed_is_refused(tmp_path: Path) -> None:
    (slow,) = perturb_speed(load_manifest(stereo_manifest(tmp_path)), (0.9,))
    samples, rate = soundfile.read(tmp_path / "stereo.wav")
    soundfile.write(tmp_path / "stereo.wav", samples[: rate // 2], rate)
    with pytest.raises(DataError, match="audio cannot be read"):
        read_samples(slow)


def test_another_rate_is_resampled(cuts: CutSet) -> None:
    cut = next(iter(cuts))
    assert len(read_samples(cut, 8000)) == pytest.approx(cut.num_samples / 2, abs=1)


@pytest.mark.parametrize(
    ("content", "cause"), [(b"broken", "no audio format that is known"), (b"", "a file of 0 bytes")]
)
def test_unreadable_audio_says_why_in_one_line(tmp_path: Path, content: bytes, cause: str) -> None:
    cuts = load_manifest(stereo_manifest(tmp_path))
    (tmp_path / "stereo.wav").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_samples(next(iter(cuts)))
    message = str(caught.value)
    assert message.startswith("a: its audio cannot be read (")
    assert "stereo.wav" in message
    assert cause in message
    assert "\n" not in message
    assert len(message) < 250
