"""Models and batches small enough for the tests of methods."""

from __future__ import annotations

import pytest
import torch

from omnisparse.data.batching import Batch
from omnisparse.models import LasConfig, SpeechModel, TransducerConfig, build_model

LAS = LasConfig(
    encoder_layers=2, encoder_dim=16, decoder_dim=16, attention_dim=8, attention_heads=2,
    embedding_dim=8, dropout=0.0,
)  # fmt: skip
TRANSDUCER = TransducerConfig(
    encoder_layers=2, encoder_dim=16, predictor_dim=16, joiner_dim=8, embedding_dim=8, dropout=0.0
)
MODELS = pytest.mark.parametrize("config", [LAS, TRANSDUCER], ids=["las", "transducer"])


def make_model(config: LasConfig | TransducerConfig) -> SpeechModel:
    torch.manual_seed(0)
    return build_model(config, input_dim=12, vocab_size=10)


def make_batch(utterances: int = 8, positions: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(12, 21, (utterances,), generator=generator)
    token_lengths = torch.randint(1, 5, (utterances,), generator=generator)
    tokens = torch.randint(3, 10, (utterances, 4), generator=generator)
    for row, length in enumerate(token_lengths):
        tokens[row, length:] = 0
    batch = Batch(
        features=torch.randn(utterances, 20, 12, generator=generator),
        feature_lengths=lengths,
        tokens=tokens,
        token_lengths=token_lengths,
        ids=tuple(f"u{index}" for index in range(utterances)),
        positions=torch.arange(utterances),
        audio_seconds=1.0,
    )
    return batch if positions is None else batch.select(torch.tensor(positions))
