"""NeMo's own modules beside ours; run by ``make test-nemo``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnisparse.data.features import FeatureExtractor
from omnisparse.deploy.streaming import StreamingFeatures

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore"),  # those of NeMo's imports
]

PREPROCESSOR = {
    **{"sample_rate": 16000, "window_size": 0.025, "window_stride": 0.01, "window": "hann"},
    **{"features": 80, "n_fft": 512, "frame_splicing": 1, "dither": 1e-5, "pad_to": 0},
}
"""As in NeMo's recipes."""


def speech_like(count: int) -> np.ndarray:
    generator = np.random.default_rng(count)
    samples = 0.1 * generator.standard_normal(count).astype(np.float32)
    samples[count // 2 :] *= 1e-3
    return samples


@pytest.mark.parametrize("normalize", ["per_feature", "NA"])
@pytest.mark.parametrize("count", [1600, 16000, 80_079, 160_123])
def test_features_are_nemos(normalize: str, count: int) -> None:
    modules = pytest.importorskip("nemo.collections.asr.modules")
    theirs = modules.AudioToMelSpectrogramPreprocessor(normalize=normalize, **PREPROCESSOR).eval()
    samples = speech_like(count)
    expected, lengths = theirs(
        input_signal=torch.from_numpy(samples)[None], length=torch.tensor([count])
    )
    ours = FeatureExtractor(stack=1, kind="nemo", per_utterance=normalize == "per_feature")
    found = ours(samples)
    assert len(found) == int(lengths[0])
    np.testing.assert_allclose(found, expected[0].t()[: len(found)].numpy(), rtol=0, atol=1e-4)
    if normalize == "NA":
        stream, parts = StreamingFeatures(ours), []
        for start in range(0, count, 1000):
            final = start + 1000 >= count
            parts.append(stream.accept(samples[start : start + 1000], final=final))
        np.testing.assert_allclose(np.concatenate(parts), found, rtol=0, atol=1e-5)
