"""The recogniser reads audio of any rate and channel count, and names what it cannot use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from omnisparse.deploy.recognizer import Recognizer, Transcript
from omnisparse.deploy.recording import audio_chunks, read_audio
from omnisparse.errors import DataError

RATE = 16000


class Extractor:
    """One frame per 10 ms: its mean absolute value."""

    sampling_rate = RATE

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        frames = np.abs(samples[: len(samples) // 160 * 160]).reshape(-1, 160)
        return frames.mean(axis=1, keepdims=True)


class Tokens:
    def decode(self, ids: list[int]) -> str:
        return " ".join(str(i) for i in ids)


class FrameCounter(torch.nn.Module):
    """Says how many frames it was given, and the beam."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def decode(
        self, features: torch.Tensor, lengths: torch.Tensor, *, beam: int = 1
    ) -> list[list[int]]:
        assert not self.training
        assert features.shape[:2] == (1, int(lengths[0]))
        return [[int(lengths[0]), beam]]


@pytest.fixture
def recognizer() -> Recognizer:
    parts: Any = (FrameCounter().train(), Tokens(), Extractor())
    return Recognizer(*parts)


def _tone(seconds: float, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)


def test_samples_and_file_agree(recognizer: Recognizer, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _tone(1.0), RATE)
    from_file = recognizer.transcribe(tmp_path / "a.wav", beam=3)
    from_samples = recognizer.transcribe(_tone(1.0), beam=3)
    assert from_file.text == from_samples.text == "100 3"
    assert from_file.audio_seconds == 1.0
    assert from_file.rtf == from_file.seconds


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_are_resampled(recognizer: Recognizer, tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.flac", _tone(1.0, rate), rate)
    samples = recognizer.load_samples(str(tmp_path / "a.flac"))
    assert len(samples) == RATE
    inner = slice(1000, -1000)  # the resampler's filter rings at the ends
    np.testing.assert_allclose(samples[inner], _tone(1.0)[inner], atol=0.01)
    assert recognizer.transcribe(_tone(1.0, rate), sampling_rate=rate).text == "100 1"


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE)
    samples, rate = read_audio(tmp_path / "a.wav")
    assert rate == RATE
    np.testing.assert_allclose(samples, 0.125, atol=1e-4)


def test_unusable_files_are_named(recognizer: Recognizer, tmp_path: Path) -> None:
    corrupt, empty, folder = tmp_path / "corrupt.wav", tmp_path / "empty.wav", tmp_path / "d"
    corrupt.write_bytes(b"RIFF....this is no audio")
    soundfile.write(empty, np.zeros(0), RATE)
    folder.mkdir()
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.array([0.0, np.nan] * 500), RATE, subtype="FLOAT")
    for path, reason in (
        (tmp_path / "missing.wav", "no such file"),
        (corrupt, "cannot be read as audio"),
        (empty, "zero samples"),
        (folder, "not a file"),
        (nan, "not finite"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            recognizer.transcribe(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_bad_arguments_are_named(recognizer: Recognizer) -> None:
    with pytest.raises(ValueError, match="beam"):
        recognizer.transcribe(_tone(1.0), beam=0)
    with pytest.raises(ValueError, match="sampling_rate"):
        recognizer.transcribe(_tone(1.0), sampling_rate=0)
    with pytest.raises(ValueError, match="beam"):
        recognizer.transcribe(_tone(1.0), beam=0, streaming=True)
    with pytest.raises(DataError, match="too short"):
        recognizer.transcribe(_tone(0.005))
    with pytest.raises(DataError, match=r"shape \[N\]"):
        recognizer.transcribe(np.zeros((2, 100)))
    for streaming in (False, True):
        with pytest.raises(DataError, match="float samples in .*got int16; divide"):
            recognizer.transcribe(np.zeros(16000, dtype=np.int16), streaming=streaming)


def test_silence_of_no_length_has_no_rtf() -> None:
    assert Transcript(text="", audio_seconds=0.0, seconds=1.0).rtf == 0.0


def test_an_mp3_in_pieces_is_the_whole_file(tmp_path: Path) -> None:
    time = np.arange(4 * RATE) / RATE
    tone = np.sin(2 * np.pi * (200 + 100 * np.sin(time)) * time) * (np.sin(3 * time) > 0)
    noise = np.random.default_rng(0).standard_normal(4 * RATE) * (np.cos(time) > 0)
    path = tmp_path / "a.mp3"
    soundfile.write(path, 0.3 * tone + 0.05 * noise, RATE, bitrate_mode="VARIABLE")
    whole, _ = soundfile.read(path, dtype="float32")
    rate, pieces = audio_chunks(path, 0.32)
    assert rate == RATE
    np.testing.assert_allclose(np.concatenate(list(pieces)), whole, atol=1e-6)
