"""Stopping and resuming equals not stopping, bit by bit on the CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from wandb_rows import history_of

from omnisparse.config import RunConfig, config_to_yaml
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.train import train
from omnisparse.training import stop_signals
from omnisparse.training.checkpoint import Checkpoint, load_newest
from omnisparse.training.stop_signals import InterruptedTrainingError
from omnisparse.training.tracking import TrackingConfig


def newest(run: Path) -> Checkpoint:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def assert_same_run(one: Path, other: Path) -> None:
    first, second = newest(one), newest(other)
    assert first.step == second.step
    assert first.state["batches"] == second.state["batches"]
    assert first.tensors.keys() == second.tensors.keys()
    for stem, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[stem].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors[stem][name]), f"{stem}: {name}"
    assert losses(one) == losses(other)


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in lines]


def interrupt_at(steps: set[int]) -> Callable[..., None]:
    def on_progress(step: int, max_steps: int, metrics: object) -> None:
        if step in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


# Steps 2 to 5, then the sandwich.
CORE = {"core_fraction": 0.4, "shrink_fraction": 0.3, "core_gradient": 0.25}


def test_files_of_the_user_are_not_taken_for_a_run_that_failed(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(max_steps=0)
    contents = {"config.yaml": f"# mine\n{config_to_yaml(config)}", "tokenizer.model": "mine"}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(OmnisparseError, match="files that are not from a training"):
        train(config, out=tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == contents


@pytest.mark.parametrize(
    ("model", "options", "log_every", "precision"),
    [  # 3 and 5: within one line's average
        ("las", {}, 1, "fp32"),
        ("las", {**CORE, "block": "8x1", "block_matrices": ("^encoder",)}, 3, "bf16"),
        ("transducer", {}, 5, "fp32"),
        ("transducer", {}, 5, "bf16"),
    ],
)
def test_two_interruptions_change_nothing(
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    model: str,
    options: dict[str, Any],
    log_every: int,
    precision: str,
) -> None:
    config = tiny_config(model, log_every=log_every, precision=precision, ema=0.9)
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, **options))
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(config, out=straight)
    for step in (4, 7):  # within one ranking's life, and within one epoch
        with pytest.raises(InterruptedTrainingError, match=f"step {step} of 10"):
            train(config, out=resumed, on_progress=interrupt_at({step}))
    result = train(config, out=resumed)
    assert result.steps == 10
    assert_same_run(straight, resumed)


def test_a_finished_run_is_returned_at_once_and_another_configuration_is_refused(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    first = train(tiny_config(max_steps=2), out=tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = train(tiny_config(max_steps=2), out=tmp_path / "run")
    assert (first.run, first.steps) == (again.run, again.steps)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(Exception, match=r"training\.max_steps is 2 there and 3 here"):
        train(tiny_config(max_steps=3), out=tmp_path / "run")


def test_a_run_that_failed_before_its_first_checkpoint_is_no_obstacle(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    good = tiny_config(max_steps=1)
    bad = dataclasses.replace(good, data=dataclasses.replace(good.data, vocab_size=5))
    with pytest.raises(ValueError, match="vocab_size"):
        train(bad, out=tmp_path / "run")
    assert train(good, out=tmp_path / "run").steps == 1


def test_no_steps_write_the_untrained_net_as_a_run(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    for _ in range(2):  # the second time it is a finished run
        assert train(tiny_config(max_steps=0), out=tmp_path / "run").steps == 0
    assert newest(tmp_path / "run").step == 0


@pytest.mark.multiprocess
def test_a_killed_process_loses_only_the_steps_since_its_checkpoint(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(max_steps=30, checkpoint_every=4)
    config = dataclasses.replace(config, tracking=TrackingConfig(wandb="offline"))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    command = [sys.executable, "-m", "omnisparse.cli", "train", "config.yaml", "--out", "killed"]
    environment = {name: os.environ[name] for name in os.environ if name != "WANDB_SERVICE"}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and not list(killed.glob("checkpoints/step-*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert newest(killed).step >= 4
    train(dataclasses.replace(config, tracking=TrackingConfig(wandb="off")), out=straight)
    train(config, out=killed)
    assert_same_run(straight, killed)
    assert [step for step, _ in history_of(killed)] == list(range(1, 31))  # each once, in W&B too


def test_a_run_has_one_training_at_a_time(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(max_steps=30, checkpoint_every=4)
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    command = [sys.executable, "-m", "omnisparse.cli", "train", "config.yaml", "--out", "run"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    first = start()
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and not (tmp_path / "run" / "config.yaml").exists():
        time.sleep(0.01)
    # It may not be done before the other has come so far as to look for it.
    os.kill(first.pid, signal.SIGSTOP)
    second = start()
    give_up = threading.Timer(120, second.kill)
    give_up.start()
    assert second.stderr is not None
    said = iter(second.stderr.readline, "")
    waited = any("waiting for another process that trains" in line for line in said)
    give_up.cancel()
    os.kill(first.pid, signal.SIGCONT)
    told = [process.communicate(timeout=300)[1] for process in (first, second)]
    assert waited
    assert [first.returncode, second.returncode] == [0, 0], told
    train(config, out=tmp_path / "straight")
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_second_interrupt_does_not_wait(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_signals, "SAME_PRESS_SECONDS", 0.0)

    def insist(step: int, max_steps: int, metrics: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    config = tiny_config(max_steps=2)
    with pytest.raises(KeyboardInterrupt, match="abandoned"):
        train(config, out=tmp_path / "run", on_progress=insist)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert train(config, out=tmp_path / "run").steps == 2
