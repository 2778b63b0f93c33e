"""A short torture: five cycles of kills and damage, and jobs of which one process stands still."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_resume import assert_same_run

from omnisparse.config import RunConfig, config_to_yaml
from omnisparse.training.checkpoint import list_checkpoints

TORTURE = Path(__file__).parents[2] / "tools" / "torture.py"


def torture(tmp_path: Path, corpora: Path, **options: object) -> dict[str, int]:
    """What a torture counts; nothing may fail."""
    words = [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, str(TORTURE), *words, f"--out={tmp_path}", f"--corpora={corpora}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert row["failures"] == 0
    assert row["most_steps_lost"] <= 4
    found: dict[str, int] = row
    return found


def test_five_cycles_lose_nothing(tmp_path: Path, speech_root: Path) -> None:
    row = torture(tmp_path, speech_root, processes=1, kills=2, flips=1, steps=12)
    assert row["kills in training"] == row["kills in saving"] == 1
    assert row["flipped bytes"] == 1
    assert row["SIGTERM while preparing"] == row["SIGTERM while evaluating"] == 1
    assert sum(count for name, count in row.items() if name.startswith("full disks")) == 1
    assert row["runs compared"] >= 5


@pytest.mark.slow
def test_two_processes_lose_nothing_and_name_the_one_that_stands_still(
    tmp_path: Path, speech_root: Path
) -> None:
    row = torture(tmp_path, speech_root, processes=2, kills=4, flips=1, steps=16)
    assert row["kills"] == 4
    for said in ("reading its batch for ...", "not answered for ...", "has gone at step ..."):
        assert row[said] == 1


@pytest.mark.slow
def test_torchrun_starts_all_processes_again_and_they_go_on_by_themselves(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(max_steps=40, checkpoint_every=4)
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    recipe = str(TORTURE.parents[1] / "recipes" / "train_supernet.py")
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "--max-restarts=1", recipe, "--config", "config.yaml", "--out",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("straight", "killed"):
        process = subprocess.Popen(
            [*launch, name], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        checkpoints = tmp_path / name / "checkpoints"
        if name == "killed":
            deadline = time.monotonic() + 200
            while not list_checkpoints(checkpoints) and time.monotonic() < deadline:
                time.sleep(0.01)
            workers = [
                one for one in psutil.Process(process.pid).children(recursive=True)
                if recipe in one.cmdline() and one.environ().get("RANK") == "1"
            ]  # fmt: skip
            workers[0].kill()
        stderr = process.communicate(timeout=300)[1]
        assert process.returncode == 0, stderr[:3000]
    assert re.search(r"continuing .*killed at step \d+ of 40", stderr)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
