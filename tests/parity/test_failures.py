"""Real failures of real trainings: what is lost, what is said, and that the end is the same."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_same_run, newest

from omnisparse.config import RunConfig
from omnisparse.evaluation.evaluate import Decoder
from omnisparse.pipeline import dev_evaluation
from omnisparse.pipeline.train import train
from omnisparse.training.checkpoint import list_checkpoints
from omnisparse.training.stop_signals import InterruptedTrainingError
from omnisparse.training.tracking import Tracker
from omnisparse.training.trainer import Trainer

MakeConfig = Callable[..., RunConfig]


def test_a_signal_while_evaluating_gives_the_evaluation_up_and_the_next_run_makes_it(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(max_steps=6, evaluate_every=3, evaluate_utterances=6)
    train(config, out=tmp_path / "straight")
    run_task, evaluate = Decoder.run, dev_evaluation.evaluate
    stops = [True, False, True, False]  # by evaluation: step 3, again, step 6, again

    def evaluate_once(*arguments: Any, **options: Any) -> Any:
        try:
            return evaluate(*arguments, **options)
        finally:
            stops.pop(0)

    def maybe_stopped(self: Decoder, *arguments: Any) -> Any:
        if stops[0]:
            os.kill(os.getpid(), signal.SIGUSR1)
        return run_task(self, *arguments)

    monkeypatch.setattr(dev_evaluation, "evaluate", evaluate_once)
    monkeypatch.setattr(Decoder, "run", maybe_stopped)
    for step in (3, 6):
        with pytest.raises(InterruptedTrainingError, match=f"SIGUSR1 at step {step} of 6") as told:
            train(config, out=tmp_path / "stopped")
        assert told.value.exit_code == 138
        assert newest(tmp_path / "stopped").state["owes_evaluation"] is True
    train(config, out=tmp_path / "stopped")
    assert stops == []
    assert "owes_evaluation" not in newest(tmp_path / "stopped").state
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    best = [newest(tmp_path / name / "weights" / "best") for name in ("straight", "stopped")]
    assert best[0].step == best[1].step
    for name, tensor in best[0].tensors["model"].items():
        assert torch.equal(tensor, best[1].tensors["model"][name])


def test_a_signal_while_preparing_ends_at_once_and_costs_nothing(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config(max_steps=4)
    train(config, out=tmp_path / "straight")
    for words in ("trains on", "features of"):

        def stop(line: str, words: str = words) -> None:
            if line.startswith(words):
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(InterruptedTrainingError, match="SIGTERM while preparing") as stopped:
            train(config, out=tmp_path / "stopped", on_stage=stop)
        assert stopped.value.exit_code == 143
        assert not list_checkpoints(tmp_path / "stopped" / "checkpoints")
    train(config, out=tmp_path / "stopped")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_kill_before_the_configuration_was_written_is_no_obstacle(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.4711.part.yaml").write_text("name: ti")
    (run / ".lock").touch()
    assert train(tiny_config(max_steps=0), out=run).steps == 0
    assert not list(run.glob(".config*"))


def test_a_damaged_checkpoint_is_told_once_and_the_one_before_is_taken(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config(max_steps=6, checkpoint_every=2)
    train(config, out=tmp_path / "straight")
    train(config, out=tmp_path / "run")
    file = list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    told: list[str] = []
    assert train(config, out=tmp_path / "run", on_stage=told.append).steps == 6
    (line,) = [line for line in told if "passed over" in line]
    assert "content does not match its checksum): step-00000004 is the newest" in line
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def hurt_at(batches: set[int]) -> Callable[..., None]:
    """A training step that destroys the net when the data is at one of some positions."""
    step = Trainer.train_step

    def hurting(trainer: Trainer, batch: Any) -> None:
        step(trainer, batch)
        place = trainer.batches.state_dict()
        if place["epoch"] * trainer.batches.steps_per_epoch + place["batches"] in batches:
            with torch.no_grad():
                trainer.parameters["output.weight"].mul_(-60)

    return hurting


def test_a_spike_goes_back_leaves_the_batches_out_and_resumes_like_everything(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        max_steps=14, log_every=2, checkpoint_every=4, rollback_factor=3.0, max_rollbacks=1
    )
    monkeypatch.setattr(Trainer, "train_step", hurt_at({9}))
    told: list[str] = []
    train(config, out=tmp_path / "run", on_stage=told.append)
    spikes = [line for line in told if line.startswith("the loss has a spike")]
    assert spikes == [
        "the loss has a spike before step 10: back to step 8, without the batches since (1 of at "
        "most 1 times)"
    ]
    lines = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12, 14]
    assert [line["rollbacks"] for line in lines] == [0, 0, 0, 0, 1, 1, 1]
    assert max(line["loss/dense"] for line in lines[4:]) < 2 * lines[3]["loss/dense"]
    last = newest(tmp_path / "run")
    assert last.state["cost"]["utterance_passes"] > lines[3]["utterance_passes"]

    def stop(step: int, max_steps: int, metrics: object) -> None:
        if step == 11:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedTrainingError):
        train(config, out=tmp_path / "stopped", on_progress=stop)
    train(config, out=tmp_path / "stopped")
    assert_same_run(tmp_path / "run", tmp_path / "stopped")


def test_it_goes_back_no_more_than_it_may(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        max_steps=12, log_every=1, checkpoint_every=3, rollback_factor=3.0, max_rollbacks=2
    )
    monkeypatch.setattr(Trainer, "train_step", hurt_at({5, 8, 11}))
    told: list[str] = []
    assert train(config, out=tmp_path / "run", on_stage=told.append).steps == 12
    spikes = [line for line in told if line.startswith("the loss has a spike")]
    assert ["back to step" in line for line in spikes[:3]] == [True, True, False]
    assert not any("back to step" in line for line in spikes[2:])
    with pytest.raises(ValueError, match="must be 0"):
        dataclasses.replace(config.training, rollback_factor=0.9)


@pytest.mark.parametrize(
    ("number", "marks"), [(signal.SIGTERM, [1]), (signal.SIGUSR1, [1]), (signal.SIGINT, [])]
)
def test_only_a_scheduler_marks_a_run_as_preempted(
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    marks: list[int],
) -> None:
    marked: list[int] = []
    monkeypatch.setattr(Tracker, "preempted", lambda tracker: marked.append(1))
    with pytest.raises(InterruptedTrainingError):
        train(
            tiny_config(max_steps=3),
            out=tmp_path / "run",
            on_progress=lambda *step: os.kill(os.getpid(), number),
        )
    assert marked == marks
