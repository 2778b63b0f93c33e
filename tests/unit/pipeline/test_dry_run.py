"""`train --dry-run`: what a training would take, measured by its own steps, and nothing left."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from omnisparse.cli.baseline import plan_baseline
from omnisparse.cli.group import Report
from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig, config_to_yaml
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.dry_run import dry_run
from omnisparse.training import rehearsal
from omnisparse.training.memory import PeakMemory
from omnisparse.training.precision import has_bf16
from omnisparse.training.trainer import Trainer

ROOT = Path(__file__).parents[3]


def test_it_measures_the_last_phase_and_leaves_nothing(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transducer begins by CTC alone and a supernet dense: both are behind that here."""
    config = tiny_config("transducer", max_steps=900, accumulate=2, precision="bf16")
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    for folder in (work / "runs" / "older", temporary):
        folder.mkdir(parents=True)
    (work / "runs" / "latest").symlink_to("older")
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    seen: list[tuple[int, int]] = []
    real = Trainer.train_step

    def step(trainer: Trainer, batch: object) -> None:
        seen.append((trainer.step, trainer.method.num_losses(trainer.step)))
        real(trainer, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", step)
    result = CliRunner().invoke(
        verbs, ["train", str(tmp_path / "config.yaml"), "--dry-run", "--json"]
    )
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert row["steps"] == 900
    assert row["peak_bytes"] > 1_000_000
    assert row["audio_seconds_per_second"] > 1
    assert row["precision"] == ("bf16" if has_bf16("cpu") else "fp32")
    assert row["processes"] == 1
    assert len(seen) in (12, 14)
    assert {losses for _, losses in seen} == {3}
    assert seen[-1][0] == 899
    assert sorted(path.name for path in work.rglob("*")) == ["latest", "older", "runs"]
    assert os.readlink(work / "runs" / "latest") == "older"
    assert list(temporary.glob("dry-run-*")) == []


def test_parts_of_a_batch_need_less_memory(
    tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "TIMED_STEPS", 1)
    config = tiny_config(max_steps=20, method="dense")
    wide = dataclasses.replace(config.model, encoder_dim=64)
    data = dataclasses.replace(config.data, batch_seconds=60, max_batch_size=24)
    config = dataclasses.replace(config, data=data, model=wide)
    parts = dataclasses.replace(config, data=dataclasses.replace(data, micro_batch_seconds=4.0))
    whole, part = (dry_run(one)["peak_bytes"] for one in (config, parts))
    assert part < 0.85 * whole  # resident memory: what is loaded for the first time counts, too


def test_the_largest_batch_is_the_one_measured(
    tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, batch: taken.append(batch.features.shape[:2].numel())
    )
    monkeypatch.setattr(rehearsal, "TIMED_STEPS", 40)  # all of an epoch and more
    dry_run(tiny_config())
    assert max(taken[:4]) == max(taken)
    assert min(taken[4:]) < max(taken)


def test_memory_is_counted_from_a_start() -> None:
    kept = torch.ones(30_000_000)  # 120 MB that are there before
    memory = PeakMemory(torch.device("cpu"))
    torch.ones(10_000_000).sum()  # freed again
    assert 35_000_000 < memory.num_bytes < 60_000_000
    del kept


@pytest.mark.parametrize("place", ["gradients.Gradients._backward", "trainer.Trainer._clip"])
def test_out_of_memory_names_the_setting(
    place: str, tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(f"omnisparse.training.{place}", fail)
    with pytest.raises(OmnisparseError, match=r"out of memory with \d+ utterances.*data.micro_bat"):
        dry_run(tiny_config())


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_of_the_recipe(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_to_yaml(tiny_config(max_steps=50)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    recipe = [str(ROOT / "recipes" / "train_supernet.py"), "--config", "config.yaml"]
    done = subprocess.run(
        [*launch, *recipe, "--dry-run", "--json"], cwd=tmp_path, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(done.stdout)
    assert (row["steps"], row["processes"]) == (50, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_row_that_trains_others_first_is_no_dry_run(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(config_to_yaml(tiny_config(method="dense")))
    row = plan_baseline(tmp_path / "config.yaml", ["method=distilled", "size=60%"])
    report = Report(as_json=True)
    report.dry_run = True
    with pytest.raises(OmnisparseError, match="one training, and distilled trains other nets"):
        row(report, None)
