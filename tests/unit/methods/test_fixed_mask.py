"""Fine-tuning of an extracted model: what is zero stays zero, to the last count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import omnisparse
from omnisparse.config import RunConfig, override_config
from omnisparse.methods import FixedMask
from omnisparse.pipeline.train import train
from omnisparse.runs.directory import load_model, read_description
from omnisparse.training.checkpoint import list_checkpoints, load_checkpoint
from omnisparse.training.trainer import Trainer


def zeros(model, names: list[str]) -> dict[str, torch.Tensor]:
    return {fqn: model.get_parameter(fqn).detach() == 0 for fqn in names}


@pytest.fixture
def start(tiny_config, tmp_path: Path) -> Path:
    """A model of 55 % that was extracted from a run."""
    run = train(tiny_config("transducer", max_steps=4), out=tmp_path / "base").run
    told = omnisparse.extract(run, size="55%", out=tmp_path / "small", precision="fp16")
    return Path(told["path"])


@pytest.fixture
def tuned(tiny_config, start: Path) -> RunConfig:
    return override_config(
        tiny_config("transducer", "dense", max_steps=6, checkpoint_every=3, log_every=1),
        ["method=fixed_mask", f"init={start}"],
    )


def test_zeros_stay_zero_after_every_step(
    tuned: RunConfig, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_model(start).model
    names = read_description(tmp_path / "base").prunable
    hidden = zeros(before, names)
    assert sum(int(mask.sum()) for mask in hidden.values()) > 0
    steps = []
    step = Trainer.train_step

    def watched(self, batch) -> None:
        step(self, batch)
        assert isinstance(self.method, FixedMask)
        for fqn, mask in hidden.items():
            assert torch.equal(self.model.get_parameter(fqn) == 0, mask), fqn
        steps.append(self.step)

    monkeypatch.setattr(Trainer, "train_step", watched)
    done = train(tuned, out=tmp_path / "tuned")
    assert steps == [1, 2, 3, 4, 5, 6]
    after = load_model(done.run).model
    assert all(torch.equal(mask, hidden[fqn]) for fqn, mask in zeros(after, names).items())
    moved = [not torch.equal(one, two) for one, two in zip(
        after.parameters(), before.parameters(), strict=True
    )]  # fmt: skip
    assert all(moved)
    # The size that was extracted, to the weight, in the run and in what is extracted from it.
    first = omnisparse.extract(tmp_path / "base", size="55%", out=tmp_path / "again")
    last = omnisparse.extract(done.run, size=str(first["nonzero"]), out=tmp_path / "last")
    assert last["nonzero"] == first["nonzero"]
    assert last["warnings"] == []
    for fqn, mask in hidden.items():
        assert torch.equal(load_model(tmp_path / "last").model.get_parameter(fqn) == 0, mask)
    assert done.metrics["sparsity"] == pytest.approx(first["sparsity"])


def test_a_resumed_run_keeps_its_masks_bit_by_bit(tuned: RunConfig, tmp_path: Path) -> None:
    whole = train(tuned, out=tmp_path / "whole").run
    part = train(tuned, out=tmp_path / "part").run
    newest = list_checkpoints(part / "checkpoints")[-1]
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    (part / "metrics.jsonl").write_text("")
    assert train(tuned, out=tmp_path / "part").steps == 6
    one, two = (load_checkpoint(list_checkpoints(run / "checkpoints")[-1]) for run in (whole, part))
    for group in ("model", "method", "optimizer"):
        assert one.tensors[group].keys() == two.tensors[group].keys()
        for name, tensor in one.tensors[group].items():
            assert torch.equal(tensor, two.tensors[group][name]), (group, name)


def test_a_net_without_zeros_is_one_line(tiny_config, tmp_path: Path) -> None:
    config = override_config(tiny_config("transducer", "dense", max_steps=2), ["method=fixed_mask"])
    with pytest.raises(ValueError, match=r"no prunable weight is zero.*init=MODEL"):
        train(config, out=tmp_path / "run")
