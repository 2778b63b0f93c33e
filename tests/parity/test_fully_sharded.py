"""FSDP2 on two processes of a CPU: the gradients, members, weights and checkpoints of DDP.

accelerate takes plain data parallelism on CPUs whatever it is asked for; the loop shards by torch's
own ``fully_shard`` wherever the launcher asks for FSDP.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from omnisparse.config import RunConfig
from omnisparse.models.base import ModelOutput
from omnisparse.pipeline.train import train
from omnisparse.sparsity.sharded_tensors import as_sharded, whole
from omnisparse.training.checkpoint import Checkpoint, load_newest
from omnisparse.training.fully_sharded import prepare_module
from omnisparse.training.launch import make_accelerator
from omnisparse.training.stop_signals import InterruptedTrainingError
from omnisparse.training.trainer import Trainer

pytestmark = pytest.mark.multiprocess
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
STOPPED_AT = 4  # where several processes ask each other

Run = tuple[RunConfig, Path, bool, int]
"""A training: configuration, directory, whether it is sharded, step at which it stops (0: none)."""


def _trainings(runs: tuple[Run, ...], rank: int) -> None:
    """One of two processes, which take several trainings after each other."""
    for config, out, sharded, stop in runs:
        for name, value in SHARDED.items():
            os.environ.pop(name, None)
            if sharded:
                os.environ[name] = value
        gradients: dict[str, torch.Tensor] = {}
        clip = Trainer._clip

        def save_then_clip(
            trainer: Trainer,
            gradients: dict[str, torch.Tensor] = gradients,
            clip: Callable[[Trainer], float] = clip,
            sharded: bool = sharded,
            stop: int = stop,
        ) -> float:
            every = trainer.parameters.items()
            assert all((as_sharded(p) is not None) == sharded for _, p in every)
            gradients |= {f"{trainer.step} {n}": whole(p.grad).clone() for n, p in every}
            if trainer.step + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return clip(trainer)

        Trainer._clip = save_then_clip  # type: ignore[method-assign]
        try:
            train(config, out=out)
        except InterruptedTrainingError:
            assert stop
        finally:
            Trainer._clip = clip  # type: ignore[method-assign]
        if rank == 0:
            save_file(gradients, out / f"gradients-{max(stop, 0)}.safetensors")


def _process(rank: int, port: int, work: Callable[[int], None], folder: Path) -> None:
    # As torchrun does it; forked, because importing everything anew takes longer than the rest.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    torch.set_num_threads(1)
    try:
        work(rank)
    except BaseException:
        (folder / f"failed-{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # without what the forked copy of the test session would do at its end


def start(folder: Path, *runs: Run) -> None:
    fork(folder, functools.partial(_trainings, runs))


def fork(folder: Path, work: Callable[[int], None]) -> None:
    """Do something in two processes at once; it gets the rank of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    every = [context.Process(target=_process, args=(n, port, work, folder)) for n in (0, 1)]
    for process in every:
        process.start()
    for process in every:
        process.join(timeout=300)
    failed = [path.read_text() for path in sorted(folder.glob("failed-*"))]
    assert [process.exitcode for process in every] == [0, 0], "\n".join(failed)


def newest(run: Path) -> Checkpoint:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def make(config: RunConfig, **chosen: object) -> RunConfig:
    # Steps 0 and 1 clear all but the smallest net, 2 ranks again, from 2 on all nets train.
    options = {"warmup_fraction": 0.0, "core_fraction": 0.34, "refresh_every": 2}
    options |= {"core_gradient": 0.25, **chosen}
    options["member_share"] = 1.0  # so that both processes have a part of every net
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0),
        method=dataclasses.replace(config.method, **options),
        training=dataclasses.replace(config.training, ema=0.9, accumulate=2),
    )


def assert_near(found: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Equal but for a few weights.

    Adam makes more of rounding with every step, and neighbours in a ranking of weights that differ
    by rounding change places, which puts another weight into a subnet.
    """
    found, expected = found.double(), expected.double()
    assert (found - expected).norm() <= 1e-2 * expected.norm() + 1e-6, name


def test_sharded_is_unsharded(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make(tiny_config(max_steps=6, evaluate_every=6, evaluate_utterances=4))
    one, two = tmp_path / "whole", tmp_path / "shared"
    start(tmp_path, (config, one, False, 0), (config, two, True, STOPPED_AT))
    start(tmp_path, (config, two, True, 0))  # goes on from the checkpoint of two processes

    expected = load_file(one / "gradients-0.safetensors")
    found = load_file(two / f"gradients-{STOPPED_AT}.safetensors")
    assert len(found) > 10
    found |= load_file(two / "gradients-0.safetensors")
    assert expected.keys() == found.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    for name, gradient in expected.items():
        if name.startswith(("0 ", "1 ")):
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6, msg=name)
        else:
            assert_near(found[name], gradient, name)
    first, second = newest(one), newest(two)
    assert first.tensors.keys() == second.tensors.keys() >= {"model", "optimizer", "method", "ema"}
    for stem, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[stem].keys()
        for name, tensor in tensors.items():
            other = second.tensors[stem][name]
            if stem == "method" and not tensor.is_floating_point():
                # Places in the ranking: neighbours change them where weights differ by rounding.
                assert (other - tensor).abs().double().mean() < 1e-3 * tensor.numel()
                continue
            assert_near(other, tensor, f"{stem} {name}")
    for before, after in zip(lines(one), lines(two), strict=True):
        for key in before.keys() - {"device_seconds", "cpu_seconds"}:  # the members' losses, too
            assert after[key] == pytest.approx(before[key], rel=1e-3), key


def test_processes_may_draw_subnets_of_their_own(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    same = make(tiny_config(max_steps=3, log_every=1))
    own = make(tiny_config(max_steps=3, log_every=1), subnets_per_process=True)
    folders = [tmp_path / name for name in ("same", "own", "shared")]
    start(
        tmp_path,
        (same, folders[0], False, 0),
        (own, folders[1], False, 0),
        (own, folders[2], True, 0),
    )
    plain, drawn, shared = (load_file(one / "gradients-0.safetensors") for one in folders)
    for name, gradient in drawn.items():
        torch.testing.assert_close(shared[name], gradient, rtol=0, atol=1e-6, msg=name)
        if name.startswith("0 "):  # while the smallest trains alone, nothing is drawn
            assert torch.equal(gradient, plain[name])
    assert any(not torch.equal(drawn[name], plain[name]) for name in drawn if name.startswith("2 "))
    logged = [lines(one) for one in folders]
    # In the first step of all nets, the weights outside of the smallest are still zero.
    for name in ("loss/dense", "loss/smallest", "loss/random_0"):
        assert logged[0][1][name] == logged[1][1][name]
    assert logged[0][2]["loss/random_0"] != logged[1][2]["loss/random_0"]


class Sliced(nn.Module):
    """A net whose output is a view, as that of an encoder without its padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, features: torch.Tensor) -> ModelOutput:
        nothing = torch.zeros(())
        encoded = self.layer(features)[:, :2]
        return ModelOutput(nothing, nothing, nothing, nothing, encoder_outputs=encoded)


def _write_into_an_output(rank: int) -> None:
    os.environ |= SHARDED
    net = prepare_module(make_accelerator(), Sliced())
    encoded = net(torch.full((1, 3, 3), float(rank + 1))).encoder_outputs
    encoded.mul_(2.0)
    encoded.sum().backward()
    for name, parameter in net.named_parameters():
        assert as_sharded(parameter.grad) is not None, name
        # Two frames, doubled; the features of the two processes have the mean 1.5.
        expected = 4.0 * (1.5 if name == "layer.weight" else 1.0)
        assert torch.equal(whole(parameter.grad), torch.full(parameter.shape, expected)), name


def test_gradients_are_shared_whatever_is_written_into_an_output(tmp_path: Path) -> None:
    fork(tmp_path, _write_into_an_output)


def test_a_method_that_cannot_be_shared_is_refused(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(method="gradual_pruning", max_steps=1)
    with pytest.raises(AssertionError, match="gradual_pruning does not train with FSDP; legal: de"):
        start(tmp_path, (config, tmp_path / "run", True, 0))
