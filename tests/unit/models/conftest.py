"""Small models and batches that the tests of this room share."""

from __future__ import annotations

import pytest
import torch
from small_models import INPUT_DIM, SMALL_CONFIGS, VOCAB_SIZE, Utterances, small_model

from omnisparse.models import SpeechModel


@pytest.fixture(params=list(SMALL_CONFIGS))
def model(request: pytest.FixtureRequest) -> SpeechModel:
    """Every small model; weights are large enough for outputs that differ."""
    return small_model(request.param)


@pytest.fixture
def batch() -> Utterances:
    """Five utterances of odd and even lengths, one without words, padding filled with garbage."""
    generator = torch.Generator().manual_seed(1)
    feature_lengths = torch.tensor([13, 7, 20, 9, 1])
    token_lengths = torch.tensor([4, 2, 5, 0, 1])
    tokens = torch.randint(2, VOCAB_SIZE, (5, 5), generator=generator)
    return Utterances(
        torch.randn(5, 20, INPUT_DIM, generator=generator) * 3.0,
        feature_lengths,
        tokens.masked_fill(torch.arange(5) >= token_lengths[:, None], 0),
        token_lengths,
    )
