"""Speech models: LAS and streaming transducer. Knows nothing of sparsity, data or training."""

from __future__ import annotations

from dataclasses import asdict

from omnisparse.models.base import BLANK, SOS_EOS, Hypothesis, ModelOutput, SpeechModel
from omnisparse.models.factored import factor_matrices
from omnisparse.models.las import LasConfig, LasModel
from omnisparse.models.transducer import TransducerConfig, TransducerModel

ModelConfig = LasConfig | TransducerConfig
"""Every configuration that :func:`build_model` knows; ``kind`` tells them apart."""


def build_model(config: ModelConfig, *, input_dim: int, vocab_size: int) -> SpeechModel:
    """Build an initialised model.

    Args:
        config: Shape of the model.
        input_dim: Width F of the features, >= 1.
        vocab_size: Number of tokens V, at least 4: blank, sentence mark, unknown and one more.

    Returns:
        The model in training mode; initial weights come from torch's global generator.

    Raises:
        ValueError: If ``input_dim`` or ``vocab_size`` is too small, or a rank does not fit.
    """
    if input_dim < 1:
        raise ValueError(f"input_dim is {input_dim}; it must be at least 1")
    if vocab_size < 4:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least 4")
    fields = asdict(config)
    kind, ranks, scheme = (fields.pop(name) for name in ("kind", "ranks", "rank_scheme"))
    model_class = {"las": LasModel, "transducer": TransducerModel}[kind]
    model: SpeechModel = model_class(input_dim=input_dim, vocab_size=vocab_size, **fields)
    factor_matrices(model, ranks, scheme)
    return model


__all__ = [
    "BLANK",
    "SOS_EOS",
    "Hypothesis",
    "LasConfig",
    "LasModel",
    "ModelConfig",
    "ModelOutput",
    "SpeechModel",
    "TransducerConfig",
    "TransducerModel",
    "build_model",
]
