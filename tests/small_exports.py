"""Nets for export tests: untrained, but ones that say something about real speech."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.deploy.onnx_export import Source
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.models import LasConfig, TransducerConfig, build_model

TEXTS = ["turn on the light", "play some music", "what time is it", "call my mother now"]
NUM_BINS = 80
PARTS: dict[str, Any] = {"predictor_dim": 12, "embedding_dim": 8, "joiner_dim": 16}
CONFIGS: dict[str, Any] = {
    "stateless": TransducerConfig(
        encoder_layers=2, encoder_dim=24, time_reduction=1, predictor_layers=0,
        max_symbols_per_frame=1, **PARTS,
    ),
    "reduced": TransducerConfig(encoder_layers=3, encoder_dim=24, time_reduction=4, **PARTS),
    "lstmp": TransducerConfig(
        encoder_layers=2, encoder_dim=24, encoder_projection=10, predictor_layers=2,
        layer_norm=False, **PARTS,
    ),
    "emformer": TransducerConfig(
        encoder="emformer", encoder_layers=2, encoder_dim=24, encoder_feed_forward=20,
        time_reduction=1, segment=4, left_context=6, right_context=2, predictor_layers=0,
        max_symbols_per_frame=1, **PARTS,
    ),
    "conformer": TransducerConfig(
        encoder="conformer", encoder_layers=2, encoder_dim=24, encoder_feed_forward=20,
        encoder_kernel=5, time_reduction=1, segment=4, left_context=6, predictor_layers=0,
        max_symbols_per_frame=1, **PARTS,
    ),
    "las": LasConfig(
        encoder_layers=3, encoder_dim=24, time_reduction=4, attention_dim=16, decoder_dim=20,
        embedding_dim=8,
    ),
    "las-lstmp": LasConfig(
        encoder_layers=2, encoder_dim=24, encoder_projection=10, attention_dim=16, decoder_layers=3,
        decoder_dim=20, decoder_projection=12, embedding_dim=8, layer_norm=False,
    ),
    "las-paper": LasConfig(
        encoder_layers=2, encoder_dim=24, attention_dim=16, decoder_dim=20, decoder_projection=12,
        embedding_dim=8, attention="additive", context_input="first_layer",
    ),
}  # fmt: skip


@functools.cache
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.train(TEXTS, 40, folder)


def make_source(kind: str, folder: Path, *, sparsity: float = 0.7, **changes: Any) -> Source:
    """A pruned net with random weights, large enough that its words depend on what it hears."""
    stack = 3 if kind.startswith("las") else 4
    extractor = FeatureExtractor(
        num_bins=NUM_BINS, stack=stack, mean=[-9.0] * NUM_BINS, std=[4.0] * NUM_BINS
    )
    tokens = tokenizer(folder)
    torch.manual_seed(1)
    config = CONFIGS[kind]
    if changes:
        config = type(config)(**{**{n: getattr(config, n) for n in config.__slots__}, **changes})
    model = build_model(config, input_dim=extractor.input_dim, vocab_size=tokens.vocab_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.0)
                parameter[torch.rand_like(parameter) < sparsity] = 0.0
            if name == "joiner.output.bias" and kind != "stateless":
                parameter[0] += 1.0  # silence is what a frame mostly says
    return Source(model=model.eval(), tokenizer=tokens, extractor=extractor, name=kind)


def recognizer(source: Source) -> Recognizer:
    return Recognizer(source.model, source.tokenizer, source.extractor)
