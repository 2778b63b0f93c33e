"""A run of a small transducer that recognises, as ``train`` would have left it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.models import TransducerConfig, build_model
from omnisparse.runs.directory import RunDescription, write_description
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.training.checkpoint import save_checkpoint

CONFIG = TransducerConfig(
    encoder_layers=2, encoder_dim=96, predictor_dim=48, joiner_dim=48, embedding_dim=16
)


def make_speaking_run(path: Path) -> Path:
    """Writes a run of a randomly initialised transducer with a real tokenizer."""
    torch.manual_seed(0)
    path.mkdir(parents=True)
    tokenizer = Tokenizer.train(["one two three four five six seven"], 23, path)
    extractor = FeatureExtractor(stack=4, mean=[-8.0] * 80, std=[3.0] * 80)
    sizes = {"input_dim": extractor.input_dim, "vocab_size": tokenizer.vocab_size}
    net = build_model(CONFIG, **sizes)
    with torch.no_grad():
        net.joiner.output.weight.mul_(4.0)  # type: ignore[union-attr, operator]
    description = RunDescription(
        model={**asdict(CONFIG), **sizes},
        features=extractor.to_dict(),
        prunable=list(find_prunable(net)),
        parameters=[name for name, _ in net.named_parameters()],
        method="dense",
    )
    write_description(path, description)
    save_checkpoint(
        path / "checkpoints", step=7, tensors={"model": net.state_dict()}, state={"step": 7}
    )
    return path
