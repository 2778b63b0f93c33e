"""Learning rates of their own for parts of the net, and parts that do not train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from omnisparse.pipeline.train import train
from omnisparse.runs.directory import load_model
from omnisparse.training.config import TrainingConfig
from omnisparse.training.optimizer import make_optimizer, rate_factors

NAMES = ["encoder.lstm.weight", "encoder.lstm.bias", "joiner.weight"]


def test_the_first_expression_that_is_found_counts() -> None:
    assert rate_factors(NAMES, {}) == dict.fromkeys(NAMES, 1.0)
    found = rate_factors(NAMES, {"bias": 0.5, "^encoder": 0.1})
    assert found == {NAMES[0]: 0.1, NAMES[1]: 0.5, NAMES[2]: 1.0}


@pytest.mark.parametrize(
    ("factors", "line"),
    [
        ({"decoder": 0.1}, "learning_rate_factors: 'decoder' is in no name of a parameter; names:"),
        ({"": 0}, "learning_rate_factors freezes every parameter; leave one to train"),
        ({"(": 1.0}, r"learning_rate_factors: '\(' is not a regular expression"),
    ],
)
def test_illegal_factors_are_one_line(factors, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        rate_factors(NAMES, factors)


def test_a_factor_below_0_is_refused_by_the_configuration() -> None:
    with pytest.raises(ValueError, match="learning_rate_factors: a is -1; it must be at least 0"):
        TrainingConfig(learning_rate_factors={"a": -1})


def test_groups_are_those_of_before_without_factors_and_whole_with_them() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    named = dict(net.named_parameters())
    options = {"learning_rate": 0.1, "betas": (0.9, 0.98), "weight_decay": 0.01}
    plain = make_optimizer(named, **options)
    assert [len(group["params"]) for group in plain.param_groups] == [2, 4]
    assert [group["weight_decay"] for group in plain.param_groups] == [0.01, 0.0]
    split = make_optimizer(named, **options, factors={"^0": 0.25, "^2": 0})
    seen = {
        (group["factor"], group["weight_decay"]): len(group["params"])
        for group in split.param_groups
    }
    assert seen == {(1.0, 0.01): 1, (1.0, 0.0): 1, (0.25, 0.01): 1, (0.25, 0.0): 1}
    assert split.param_groups[0]["factor"] == 1.0


def test_parts_train_at_their_own_rates_and_frozen_ones_not_at_all(
    tiny_config, tmp_path: Path
) -> None:
    start = train(tiny_config("transducer", max_steps=0), out=tmp_path / "start").run
    before = load_model(start).model.state_dict()
    moved = {}
    for name, factors in (("plain", {}), ("tuned", {"^encoder": 0.01, "^predictor": 0})):
        config = tiny_config("transducer", "sandwich", max_steps=4, learning_rate_factors=factors)
        run = train(config, out=tmp_path / name).run
        moved[name] = {
            fqn: float((tensor - before[fqn]).abs().mean())
            for fqn, tensor in load_model(run).model.state_dict().items()
        }
    for fqn, distance in moved["tuned"].items():
        if fqn.startswith("predictor"):
            assert distance == 0.0
        elif fqn.startswith("encoder") and fqn.endswith("weight_ih_l0"):
            assert 0 < distance < 0.05 * moved["plain"][fqn]
    assert moved["tuned"]["joiner.output.weight"] > 0.2 * moved["plain"]["joiner.output.weight"]


def test_a_run_with_factors_goes_on_bit_by_bit(tiny_config, tmp_path: Path) -> None:
    options = {"learning_rate_factors": {"^encoder": 0.1, "^predictor": 0}}
    whole = train(tiny_config("transducer", max_steps=8, **options), out=tmp_path / "whole").run
    config = tiny_config("transducer", max_steps=8, checkpoint_every=4, **options)
    first = train(config, out=tmp_path / "first").run
    newest = max((first / "checkpoints").iterdir())
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    (first / "metrics.jsonl").write_text("")
    again = train(config, out=tmp_path / "first")
    assert again.steps == 8
    for (fqn, one), other in zip(
        load_model(whole).model.state_dict().items(),
        load_model(first).model.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, other), fqn
