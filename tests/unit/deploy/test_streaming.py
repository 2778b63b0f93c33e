"""Streaming gives the features and the words of offline recognition, whatever the chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from omnisparse.data.features import FeatureExtractor
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.deploy.streaming import StreamingFeatures, StreamingSession, stream
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
    assert joined.shape[0] == extractor.num_stacked(num_samples)
    np.testing.assert_allclose(joined, extractor(samples), atol=1e-4)


def test_buffer_stays_short() -> None:
    streaming = StreamingFeatures(_extractor(3))
    for _ in range(50):
        streaming.accept(_noise(5000))
        assert len(streaming._samples) < 2000


def _model(kind: str, extractor: FeatureExtractor) -> Any:
    torch.manual_seed(0)
    config: Any = (
        TransducerConfig(encoder_layers=2, encoder_dim=24, predictor_dim=16, joiner_dim=24)
        if kind == "transducer"
        else LasConfig()
    )
    return build_model(config, input_dim=extractor.input_dim, vocab_size=12).eval()


def test_transducer_says_the_same_as_offline() -> None:
    extractor, samples = _extractor(4), _noise(2 * RATE)
    model = _model("transducer", extractor)
    features = torch.from_numpy(extractor(samples))[None]
    (offline,) = model.decode(features, torch.tensor([features.shape[1]]))
    assert len(offline) > 5
    for chunk_seconds in (0.011, 0.32, 5.0):
        assert stream(model, extractor, samples, chunk_seconds=chunk_seconds) == offline


def test_recognizer_streams() -> None:
    class Tokens:
        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    extractor = _extractor(4)
    parts: Any = (_model("transducer", extractor), Tokens(), extractor)
    recognizer = Recognizer(*parts)
    offline = recognizer.transcribe(_noise(RATE))
    assert recognizer.transcribe(_noise(RATE), streaming=True).text == offline.text != ""


def test_las_says_why_it_cannot() -> None:
    extractor = _extractor(3)
    with pytest.raises(ValueError, match="a las model cannot stream"):
        StreamingSession(_model("las", extractor), extractor)


def test_chunks_hold_a_sample() -> None:
    extractor = _extractor(3)
    with pytest.raises(ValueError, match="chunk_seconds"):
        stream(_model("transducer", extractor), extractor, _noise(RATE), chunk_seconds=0.0)
