"""Who may say in which precision a training multiplies, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.train import train
from omnisparse.training import launch
from omnisparse.training.checkpoint import load_newest
from omnisparse.training.precision import check_resumed, choose_precision, has_bf16

NEEDS_BF16 = pytest.mark.skipif(not has_bf16("cpu"), reason="this CPU has no bf16 instructions")


@pytest.mark.parametrize(
    ("configured", "launcher", "expected"),
    [
        (None, None, "fp32"),
        ("bf16", None, "bf16"),
        (None, "bf16", "bf16"),
        ("bf16", "bf16", "bf16"),
        ("fp32", "no", "fp32"),
    ],
)
def test_configuration_and_launcher_agree(
    configured: str | None, launcher: str | None, expected: str
) -> None:
    assert choose_precision(configured, launcher) == expected


def test_a_launcher_that_says_otherwise_is_an_error() -> None:
    with pytest.raises(OmnisparseError, match=r"training.precision is fp32, but the launcher says"):
        choose_precision("fp32", "bf16")
    with pytest.raises(OmnisparseError, match="mixed precision fp16 is not supported.*no, bf16"):
        choose_precision(None, "fp16")


def test_what_the_launcher_hands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("bf16", "bf16"), ("no", None)):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", value)
        assert launch.launcher_says() == expected
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert launch.launcher_says() is None


def test_a_bf16_run_does_not_go_on_in_fp32() -> None:
    with pytest.raises(OmnisparseError, match="has trained in bf16 and cannot go on in fp32"):
        check_resumed("bf16", "fp32")
    for recorded in (None, "fp32", "bf16"):
        check_resumed(recorded, "bf16")


@NEEDS_BF16
def test_a_run_records_its_precision_and_bf16_changes_what_is_learnt(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        run = train(tiny_config(max_steps=2, precision=precision), out=tmp_path / precision).run
        checkpoint = load_newest(run / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.state["precision"] == precision
        assert {tensor.dtype for tensor in checkpoint.tensors["model"].values()} == {torch.float32}
        losses[precision] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    one, other = (losses[name]["loss/dense"] for name in ("fp32", "bf16"))
    assert one != other
    assert one == pytest.approx(other, rel=0.02)


def test_a_cpu_without_bf16_is_told_once_and_trains_in_fp32(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "has_bf16", lambda device: False)
    told: list[str] = []
    run = train(
        tiny_config(max_steps=1, precision="bf16"), out=tmp_path / "run", on_stage=told.append
    ).run
    assert [line for line in told if "bf16 instr" in line] == [
        "this device has no bf16 instructions: it trains in fp32"
    ]
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["precision"] == "fp32"
