"""Models and batches small enough for unit tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from omnisparse.models import LasConfig, ModelConfig, SpeechModel, TransducerConfig, build_model

INPUT_DIM = 6
VOCAB_SIZE = 9

SMALL_CONFIGS: dict[str, ModelConfig] = {
    "las": LasConfig(
        encoder_dim=12,
        attention_heads=2,
        attention_dim=8,
        decoder_dim=10,
        embedding_dim=5,
        time_reduction=4,
        dropout=0.0,
    ),
    "las-lstmp": LasConfig(
        encoder_dim=12,
        encoder_projection=7,
        attention_heads=2,
        attention_dim=8,
        decoder_layers=3,
        decoder_dim=10,
        decoder_projection=6,
        embedding_dim=5,
        dropout=0.0,
        layer_norm=False,
    ),
    "las-paper": LasConfig(
        encoder_dim=12,
        attention_heads=2,
        attention_dim=8,
        attention="additive",
        context_input="first_layer",
        decoder_dim=10,
        embedding_dim=5,
        dropout=0.0,
    ),
    "las-fed": LasConfig(
        encoder_dim=12,
        attention_heads=2,
        attention_dim=8,
        context_input="first_layer",
        decoder_layers=3,
        decoder_dim=10,
        decoder_projection=6,
        embedding_dim=5,
        dropout=0.0,
    ),
    "transducer": TransducerConfig(
        encoder_dim=12,
        predictor_layers=2,
        predictor_dim=10,
        embedding_dim=5,
        joiner_dim=8,
        time_reduction=4,
        dropout=0.0,
    ),
    "transducer-stateless": TransducerConfig(
        encoder_dim=12,
        encoder_projection=7,
        predictor_layers=0,
        predictor_dim=10,
        embedding_dim=5,
        joiner_dim=8,
        dropout=0.0,
    ),
    "transducer-emformer": TransducerConfig(
        encoder="emformer",
        encoder_layers=2,
        encoder_dim=12,
        encoder_heads=2,
        encoder_feed_forward=10,
        segment=3,
        left_context=4,
        right_context=2,
        predictor_dim=10,
        embedding_dim=5,
        joiner_dim=8,
        dropout=0.0,
    ),
    "transducer-conformer": TransducerConfig(
        encoder="conformer",
        encoder_layers=2,
        encoder_dim=12,
        encoder_heads=2,
        encoder_feed_forward=10,
        encoder_kernel=3,
        segment=3,
        left_context=4,
        predictor_dim=10,
        embedding_dim=5,
        joiner_dim=8,
        dropout=0.0,
    ),
}


class Utterances(NamedTuple):
    """A padded batch: the arguments of ``SpeechModel.forward``."""

    features: Tensor
    feature_lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor

    def row(self, index: int) -> Utterances:
        """One utterance without padding."""
        frames, tokens = int(self.feature_lengths[index]), int(self.token_lengths[index])
        return Utterances(
            self.features[index : index + 1, :frames],
            self.feature_lengths[index : index + 1],
            self.tokens[index : index + 1, :tokens],
            self.token_lengths[index : index + 1],
        )


def small_model(name: str) -> SpeechModel:
    torch.manual_seed(0)
    built = build_model(SMALL_CONFIGS[name], input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2.0)
    return built.eval()
