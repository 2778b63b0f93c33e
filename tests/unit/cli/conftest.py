"""A run directory without a training: a small net as `train` would have left it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.models import LasConfig, build_model
from omnisparse.runs.directory import RunDescription, write_description
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.training.checkpoint import save_checkpoint

SMALL = LasConfig(
    encoder_layers=2,
    encoder_dim=48,
    attention_dim=16,
    attention_heads=2,
    decoder_layers=1,
    decoder_dim=48,
    embedding_dim=16,
)


def make_run(path: Path, config: LasConfig, *, input_dim: int, vocab_size: int) -> Path:
    """Writes a run of a randomly initialised net; what extraction never reads is made up."""
    torch.manual_seed(0)
    net = build_model(config, input_dim=input_dim, vocab_size=vocab_size)
    path.mkdir(parents=True)
    sizes = {"input_dim": input_dim, "vocab_size": vocab_size}
    description = RunDescription(
        model={"kind": "las", **asdict(config), **sizes},
        features={"num_bins": 80},
        prunable=list(find_prunable(net)),
        parameters=[name for name, _ in net.named_parameters()],
        method="dense",
    )
    write_description(path, description)
    (path / "tokenizer.model").write_bytes(bytes(range(256)) * 20)
    (path / "tokens.txt").write_text("<blk> 0\n<sos/eos> 1\n\u2581a 2\n", encoding="utf-8")
    save_checkpoint(
        path / "checkpoints", step=7, tensors={"model": net.state_dict()}, state={"step": 7}
    )
    return path


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a LAS of tens of thousands of parameters."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", SMALL, input_dim=24, vocab_size=40)


@pytest.fixture
def run() -> Callable[..., Any]:
    """Runs the command line; a traceback is a failure of the test whatever was expected."""

    def invoke(*arguments: Any) -> Any:
        result = CliRunner().invoke(verbs, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Traceback" not in result.stderr
        return result

    return invoke


@pytest.fixture
def run_json(run: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """The object that a command prints with ``--json``."""

    def invoke(*arguments: Any) -> dict[str, Any]:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return dict(json.loads(result.stdout))

    return invoke
