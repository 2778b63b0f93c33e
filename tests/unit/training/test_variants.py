"""Weights that a training writes beside its last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.train import train
from omnisparse.runs.weights import weights_of
from omnisparse.training.checkpoint import load_checkpoint, load_newest
from omnisparse.training.variants import MovingAverage, write_variant


def test_the_moving_average_is_the_recursion() -> None:
    weights = {"w": torch.zeros(3)}
    average = MovingAverage(weights, 0.5)
    expected = torch.zeros(3)
    for step in range(8):
        weights["w"] = torch.full((3,), float(step + 1))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights["w"]
        average.update(weights, step)
    torch.testing.assert_close(average.averages["w"], expected)


def test_a_pruned_weight_stays_pruned(tmp_path: Path) -> None:
    last = {"w": torch.tensor([0.0, 2.0])}
    folder = write_variant(
        tmp_path, "ema", {"w": torch.tensor([0.3, 1.5])}, last=last, step=4, state={}
    )
    found = load_newest(folder / "checkpoints")
    assert found is not None
    assert torch.equal(found.tensors["model"]["w"], torch.tensor([0.0, 1.5]))
    assert found.state["weights"] == "ema"


def test_a_run_writes_them_and_verbs_read_them(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(
        max_steps=6, ema=0.9, average_checkpoints=3, checkpoint_every=2, evaluate_every=3,
        evaluate_utterances=2,
    )  # fmt: skip
    run = train(config, out=tmp_path / "run").run
    kept = [load_checkpoint(path) for path in sorted((run / "checkpoints").iterdir())]
    assert [checkpoint.step for checkpoint in kept] == [2, 4, 6]
    mean = load_newest(weights_of(run, "average") / "checkpoints")
    moving = load_newest(weights_of(run, "ema") / "checkpoints")
    best = load_newest(weights_of(run, "best") / "checkpoints")
    assert mean is not None
    assert moving is not None
    assert best is not None
    assert best.step in {3, 6}
    for name, tensor in mean.tensors["model"].items():
        stacked = torch.stack([checkpoint.tensors["model"][name] for checkpoint in kept])
        torch.testing.assert_close(tensor, stacked.mean(0))
        if name in kept[-1].tensors["ema"]:
            assert torch.equal(moving.tensors["model"][name], kept[-1].tensors["ema"][name])
    written = {}
    for weights in ("last", "ema", "average"):
        arguments = ["extract", "--run", str(run), "--size", "60%", "--weights", weights]
        out = str(tmp_path / weights)
        answer = CliRunner().invoke(verbs, [*arguments, "--out", out, "--json"])
        assert answer.exit_code == 0, answer.output
        written[weights] = (tmp_path / weights / "model.safetensors").read_bytes()
        assert json.loads(answer.stdout)["path"] == out
    assert len(set(written.values())) == 3
    told = CliRunner().invoke(verbs, ["extract", "--run", str(tmp_path), "--weights", "ema"])
    assert told.exit_code != 0


def test_weights_that_a_run_has_not_are_named(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    run = train(tiny_config(max_steps=0), out=tmp_path / "run").run
    assert weights_of(run, "last") == run
    with pytest.raises(OmnisparseError, match=r"no weights 'ema'; it has last \(training.ema"):
        weights_of(run, "ema")
