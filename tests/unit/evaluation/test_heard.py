"""Features that are kept for the next model of a test set."""

from __future__ import annotations

import time

import numpy as np
import pytest

from omnisparse.data.features import FeatureExtractor
from omnisparse.evaluation.heard import Heard


class Ear:
    """Computes features, and counts how often."""

    def __init__(self, heard: Heard) -> None:
        self.heard, self.count = heard, 0

    def hear(self, extractor: FeatureExtractor, place: int) -> np.ndarray:
        def compute() -> np.ndarray:
            self.count += 1
            samples = np.random.default_rng(place).standard_normal(16_000).astype(np.float32)
            return extractor(0.1 * samples)

        return self.heard.features(extractor, place, compute)


def test_models_that_hear_alike_share_features() -> None:
    ear = Ear(Heard())
    first = [ear.hear(FeatureExtractor(), place) for place in range(3)]
    second = [ear.hear(FeatureExtractor(), place) for place in range(3)]
    assert ear.count == 3
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(
    "other",
    [
        FeatureExtractor(mean=[1.0] * 80, std=[1.0] * 80),
        FeatureExtractor(stack=4),
        FeatureExtractor(kind="torchaudio"),
        FeatureExtractor(per_utterance=True),
    ],
)
def test_a_model_that_hears_otherwise_gets_its_own(other: FeatureExtractor) -> None:
    ear = Ear(Heard())
    ear.hear(FeatureExtractor(), 0)
    found = ear.hear(other, 0)
    assert ear.count == 2
    np.testing.assert_array_equal(found, Ear(Heard()).hear(other, 0))


def test_no_more_is_kept_than_allowed() -> None:
    one = Ear(Heard()).hear(FeatureExtractor(), 0).nbytes
    ear = Ear(Heard(max_bytes=2 * one))
    for _ in range(2):
        for place in range(3):
            ear.hear(FeatureExtractor(), place)
    assert ear.count == 4


def test_what_is_spared_is_as_long_as_it_took() -> None:
    heard = Heard()

    def compute() -> np.ndarray:
        time.sleep(0.05)
        return np.zeros((3, 2), np.float32)

    heard.features(FeatureExtractor(), 0, compute)
    assert heard.spared_seconds == 0.0
    heard.features(FeatureExtractor(), 0, compute)
    assert 0.05 <= heard.spared_seconds < 5.0
