"""Streaming gives the features and the words of offline recognition, whatever the chunks."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from omnisparse.data.features import FeatureExtractor
from omnisparse.data.resampling import StreamingResampler, resampling_ratio
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.deploy.streaming import StreamingFeatures, StreamingSession
from omnisparse.errors import DataError
from omnisparse.models import LasConfig, TransducerConfig, build_model

RATE = 16000


def _extractor(stack: int) -> FeatureExtractor:
    return FeatureExtractor(
        num_bins=16, stack=stack, mean=[-8.0] * 16, std=[3.0] * 16, sampling_rate=RATE
    )


def _noise(num_samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize("stack", [1, 3, 4])
@pytest.mark.parametrize("num_samples", [100, 400, 1599, 16000, 20479])
@pytest.mark.parametrize("step", [77, 160, 801, 5120, 30000])
def test_features_are_those_of_the_whole(stack: int, num_samples: int, step: int) -> None:
    extractor, samples = _extractor(stack), _noise(num_samples)
    streaming = StreamingFeatures(extractor)
    parts = [streaming.accept(samples[at : at + step]) for at in range(0, num_samples, step)]
    parts.append(streaming.accept(samples[:0], final=True))
    joined = np.concatenate(parts)
    assert joined.shape[0] == -(-extractor.num_frames(num_samples) // stack)
    np.testing.assert_allclose(joined, extractor(samples), atol=1e-4)


def test_buffer_stays_short() -> None:
    streaming = StreamingFeatures(_extractor(3))
    for _ in range(50):
        streaming.accept(_noise(5000))
        assert len(streaming._samples) < 2000


CONFIGS: dict[str, Any] = {
    "lstm": TransducerConfig(encoder_layers=2, encoder_dim=24, predictor_dim=16, joiner_dim=24),
    "stateless": TransducerConfig(
        encoder_layers=2, encoder_dim=24, predictor_layers=0, predictor_dim=16, joiner_dim=24
    ),
    "emformer": TransducerConfig(
        encoder="emformer", encoder_layers=2, encoder_dim=24, encoder_feed_forward=24,
        time_reduction=1, segment=3, left_context=5, right_context=2,
        predictor_dim=16, joiner_dim=24,
    ),
    "conformer": TransducerConfig(
        encoder="conformer", encoder_layers=2, encoder_dim=24, encoder_feed_forward=24,
        encoder_kernel=4, time_reduction=1, segment=4, left_context=6,
        predictor_dim=16, joiner_dim=24,
    ),
    "las": LasConfig(),
}  # fmt: skip


@functools.cache
def _model(kind: str) -> Any:
    torch.manual_seed(0)
    extractor = _extractor(4)
    model = build_model(CONFIGS[kind], input_dim=extractor.input_dim, vocab_size=12).eval()
    if kind == "las":
        return model
    # An untrained net repeats itself: this one hears how a frame differs from the average.
    features = torch.from_numpy(extractor(_speech(1.5)))[None]
    with torch.no_grad():
        average = model.encode(features, torch.tensor([features.size(1)]))[0].mean(dim=(0, 1))
        projection = model.joiner.encoder_projection
        projection.weight.mul_(5.0)
        projection.bias.copy_(-projection.weight @ average)
        model.joiner.output.weight.mul_(12.0)  # sure enough for a beam to find words
    return model


class Tokens:
    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def _recognizer(kind: str) -> Recognizer:
    extractor = _extractor(4)
    parts: Any = (_model(kind), Tokens(), extractor)
    return Recognizer(*parts)


def _speech(seconds: float) -> np.ndarray:
    """A new tone every 80 ms, in a little noise."""
    count = int(seconds * RATE)
    pitches = np.random.default_rng(1).uniform(100, 6000, 1 + count // 1280)
    phase = np.cumsum(2 * np.pi * np.repeat(pitches, 1280)[:count] / RATE)
    return (0.3 * np.sin(phase) + 0.01 * _noise(count)).astype(np.float32)


TRANSDUCERS = [kind for kind in CONFIGS if kind != "las"]


@pytest.mark.parametrize("kind", TRANSDUCERS)
@pytest.mark.parametrize("beam", [1, 3])
def test_streaming_says_the_same_as_offline(kind: str, beam: int) -> None:
    recognizer, samples = _recognizer(kind), _speech(1.5)
    offline = recognizer.transcribe(samples, beam=beam)
    assert len(set(offline.text.split())) > 3
    for step in (160, 3001, len(samples)):
        stream = recognizer.stream(beam=beam)
        for start in range(0, len(samples), step):
            stream.accept(samples[start : start + step])
        found = stream.finish()
        assert found.text == offline.text
        assert found.audio_seconds == offline.audio_seconds == 1.5
    partials: list[str] = []
    streamed = recognizer.transcribe(samples, beam=beam, streaming=True, on_partial=partials.append)
    assert streamed.text == offline.text
    assert len(partials) == 5
    if beam == 1:  # greedy words never change
        assert len(set(partials)) > 2
        assert all(offline.text.startswith(partial) for partial in partials)


@settings(max_examples=12)
@given(
    st.sampled_from(TRANSDUCERS),
    st.sampled_from([1, 2]),
    st.floats(0.01, 1.5),
    st.lists(st.integers(0, 9000), min_size=1, max_size=5).filter(any),
)
def test_any_chunks_say_the_same(kind: str, beam: int, seconds: float, chunks: list[int]) -> None:
    recognizer, samples = _recognizer(kind), _speech(seconds)
    stream = recognizer.stream(beam=beam)
    rest = samples
    for size in itertools.cycle(chunks):
        stream.accept(rest[:size])
        rest = rest[size:]
        if len(rest) == 0:
            break
    assert stream.finish().text == recognizer.transcribe(samples, beam=beam).text


@pytest.mark.parametrize("kind", ["emformer", "conformer"])
def test_one_stream_does_not_hear_another(kind: str) -> None:
    recognizer, samples = _recognizer(kind), _speech(2.0)
    first, second = recognizer.stream(), recognizer.stream()
    for start in range(0, len(samples), 1000):
        first.accept(samples[start : start + 1000])
        second.accept(-0.3 * samples[start : start + 1000])
    assert first.finish().text == recognizer.transcribe(samples).text
    assert second.finish().text == recognizer.transcribe(-0.3 * samples).text


def test_an_ended_stream_takes_no_other_recording() -> None:
    recognizer = _recognizer("conformer")
    stream = recognizer.stream()
    stream.accept(_speech(0.5))
    text = stream.finish().text
    for more in (lambda: stream.accept(_speech(0.5)), stream.finish):
        with pytest.raises(ValueError, match="this stream has ended; start a new one"):
            more()
    assert (stream.text, stream.audio_seconds) == (text, 0.5)
    session = StreamingSession(recognizer.model, recognizer.extractor)
    session.accept(_speech(0.5), final=True)
    with pytest.raises(ValueError, match="has ended"):
        session.accept(_speech(0.5))


def test_bad_samples_leave_the_stream_as_it_is() -> None:
    recognizer, samples = _recognizer("lstm"), _speech(1.0)
    stream = recognizer.stream()
    stream.accept(samples[:5000])
    for bad in (
        np.full(100, np.nan, dtype=np.float32),
        np.full(100, 1e300),  # a float64 that no float32 holds
        np.zeros((2, 100), dtype=np.float32),
        np.zeros(100, dtype=np.int16),
    ):
        with pytest.raises(DataError):
            stream.accept(bad)
    stream.accept(samples[5000:])
    assert stream.finish().text == recognizer.transcribe(samples).text


def _held(part: Any, seen: set[int]) -> int:
    """Bytes of all tensors and arrays that an object reaches, but for models and extractors."""
    if id(part) in seen or isinstance(part, torch.nn.Module | FeatureExtractor):
        return 0
    seen.add(id(part))
    if isinstance(part, torch.Tensor):
        return part.untyped_storage().nbytes()
    if isinstance(part, np.ndarray):
        return part.nbytes if part.base is None else _held(part.base, seen)
    if isinstance(part, tuple | list):
        return sum(_held(item, seen) for item in part)
    if isinstance(part, dict):
        return sum(_held(item, seen) for item in part.values())
    return _held(vars(part), seen) if hasattr(part, "__dict__") else 0


@pytest.mark.parametrize("kind", TRANSDUCERS)
@pytest.mark.parametrize("beam", [1, 3])
def test_memory_does_not_grow(kind: str, beam: int) -> None:
    recognizer = _recognizer(kind)
    stream = recognizer.stream(beam=beam, sampling_rate=8000)
    sizes = []
    for _ in range(12):
        stream.accept(_speech(1.0))
        sizes.append(_held(vars(stream), set()))
    assert max(sizes[6:]) <= max(sizes[:6]) + 1000
    assert max(sizes) < 100_000


@pytest.mark.parametrize("rate", [8000, 11025, 15999, 44056, 44100, 47999, 48000])
def test_other_rates_stream_too(rate: int, tmp_path: Path) -> None:
    recognizer = _recognizer("lstm")
    samples = _speech(1.3)
    stream = recognizer.stream(sampling_rate=rate)
    for start in range(0, len(samples), 777):
        stream.accept(samples[start : start + 777])
    offline = recognizer.transcribe(samples, sampling_rate=rate)
    found = stream.finish()
    assert found.text == offline.text
    assert found.audio_seconds == len(samples) / rate
    soundfile.write(tmp_path / "a.flac", np.stack([samples, samples], axis=1), rate)
    assert recognizer.transcribe(tmp_path / "a.flac", streaming=True).text == (
        recognizer.transcribe(tmp_path / "a.flac").text
    )


@settings(max_examples=30)
@given(
    st.sampled_from([8000, 12000, 22050, 44100, 48000]),
    st.integers(1, 9000),
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
)
def test_resampled_pieces_are_the_whole(rate: int, length: int, chunks: list[int]) -> None:
    samples = _noise(length)
    resampler, pieces, rest = StreamingResampler(rate, RATE), [], samples
    for size in itertools.cycle(chunks):
        pieces.append(resampler.accept(rest[:size]))
        rest = rest[size:]
        if len(rest) == 0:
            break
    pieces.append(resampler.accept(rest, final=True))
    expected = torchaudio.functional.resample(torch.from_numpy(samples), rate, RATE).numpy()
    joined = np.concatenate(pieces)
    assert joined.shape == expected.shape
    np.testing.assert_allclose(joined, expected, atol=1e-5)


@settings(max_examples=200)
@given(st.integers(1, 400_000), st.sampled_from([8000, RATE, 22000]))
def test_no_rate_needs_gigabytes(rate: int, target: int) -> None:
    samples_in, samples_out = resampling_ratio(rate, target)
    assert samples_in * samples_out <= max(1 << 22, rate, target)
    assert samples_in / samples_out == pytest.approx(rate / target, rel=1e-3)
    if rate % 25 == 0 and rate <= 96_000:
        assert samples_in * target == samples_out * rate


def test_unusable_recordings_are_named_while_streaming(tmp_path: Path) -> None:
    recognizer = _recognizer("lstm")
    for name, samples, reason in (
        ("empty.wav", np.zeros(0), "zero samples"),
        ("short.wav", np.zeros(80), "too short"),
        ("nan.wav", np.array([0.0] * 9000 + [np.nan]), "not finite"),
    ):
        soundfile.write(tmp_path / name, samples, RATE, subtype="FLOAT")
        with pytest.raises(DataError, match=reason) as caught:
            recognizer.transcribe(tmp_path / name, streaming=True)
        assert str(caught.value).startswith(str(tmp_path / name))


def test_las_says_why_it_cannot() -> None:
    with pytest.raises(ValueError, match="a las model cannot stream"):
        _recognizer("las").stream()


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="beam: expected at least 1, got 0"):
        _recognizer("lstm").stream(beam=0)
    with pytest.raises(ValueError, match="sampling_rate: expected at least 1 Hz, got 0"):
        _recognizer("lstm").stream(sampling_rate=0)
