"""A net of torchaudio's own making with random weights, stored as torchaudio stores its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from foreign_net import train_pieces
from torch import nn

SMALL: dict[str, Any] = {
    "input_dim": 20,
    "encoding_dim": 24,
    "segment_length": 16,
    "right_context_length": 4,
    "time_reduction_input_dim": 8,
    "time_reduction_stride": 4,
    "transformer_num_heads": 4,
    "transformer_ffn_dim": 48,
    "transformer_num_layers": 3,
    "transformer_dropout": 0.1,
    "transformer_activation": "gelu",
    "transformer_left_context_length": 6,
    "transformer_max_memory_size": 0,
    "transformer_weight_init_scale_strategy": "depthwise",
    "transformer_tanh_on_mem": True,
    "symbol_embedding_dim": 16,
    "num_lstm_layers": 2,
    "lstm_layer_norm": True,
    "lstm_layer_norm_epsilon": 1e-3,
    "lstm_dropout": 0.3,
}

SMALL_MODEL: dict[str, Any] = {
    "kind": "transducer",
    "encoder": "emformer",
    "family": "torchaudio",
    "encoder_layers": 3,
    "encoder_dim": 32,
    "encoder_heads": 4,
    "encoder_feed_forward": 48,
    "segment": 4,
    "left_context": 6,
    "right_context": 1,
    "time_reduction": 4,
    "predictor_layers": 2,
    "predictor_dim": 16,
    "embedding_dim": 16,
    "joiner_dim": 24,
}
"""The same shape in our configuration."""


def trained(net: nn.Module, start: int) -> nn.Module:
    """Random weights that emit tokens now and then, as after a training; never ``<s>``."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        net.joiner.linear.weight.mul_(3.0)
        net.joiner.linear.bias[-1] += 1.0
        net.joiner.linear.bias[start] = -1e4
    return net.eval()


def make_small(folder: Path, *, vocab_size: int = 48, seed: int = 0) -> nn.Module:
    """Write weights, pieces and statistics into a folder; returns the net."""
    from torchaudio.models.rnnt import emformer_rnnt_model

    torch.manual_seed(seed)
    net = trained(emformer_rnnt_model(num_symbols=vocab_size + 1, **SMALL), start=1)
    write(folder, net, train_pieces(vocab_size), SMALL["input_dim"])
    return net


def write(folder: Path, net: nn.Module, pieces: bytes, num_bins: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "emformer_rnnt.pt")
    (folder / "spm_bpe.model").write_bytes(pieces)
    generator = torch.Generator().manual_seed(3)
    statistics = {
        "mean": (10 + torch.randn(num_bins, generator=generator)).tolist(),
        "invstddev": (0.2 + 0.1 * torch.rand(num_bins, generator=generator)).tolist(),
    }
    (folder / "global_stats.json").write_text(json.dumps(statistics))
