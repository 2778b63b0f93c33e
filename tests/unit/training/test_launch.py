"""How many processes an accelerate command line asks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omnisparse.training.launch import launcher_options, requested_processes

RECIPE = "recipes/train_supernet.py"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "/venv/bin/accelerate", "launch", "--num_processes", "2", RECIPE], 2),
        (["python", "/venv/bin/accelerate", "launch", "--num-processes=3", "--cpu", RECIPE], 3),
        (["python", "/venv/bin/accelerate-launch", "--num_processes", "4", RECIPE], 4),
        (["python", "-m", "accelerate.commands.launch", "--num_processes", "2", RECIPE], 2),
        (["python", "/venv/bin/accelerate", "launch", RECIPE], 1),
        # What follows the script belongs to the script.
        (["accelerate", "launch", RECIPE, "--num_processes", "8"], 1),
        (["bash"], 1),
    ],
)
def test_requested_processes(command: list[str], expected: int) -> None:
    assert requested_processes(command) == expected


def test_accelerates_own_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "default_config.yaml"
    file.write_text("num_processes: 2\nuse_cpu: true\n")
    command = ["accelerate", "launch", "--config_file", str(file), RECIPE]
    assert requested_processes(command) == 2
    command = ["accelerate", "launch", "--config_file", str(tmp_path / "absent.yaml"), RECIPE]
    assert requested_processes(command) == 1


def test_no_that_was_said_is_told_from_no_that_was_not(tmp_path: Path) -> None:
    """The launcher hands on "no" either way; what it was asked is on its command line."""
    script = tmp_path / "says.py"
    script.write_text("from omnisparse.training.launch import launcher_says\n"
                      "print('launcher says', launcher_says())\n")  # fmt: skip
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    # What follows the script belongs to the script.
    command = [*launch, "--mixed_precision=no", str(script), "--mixed_precision", "bf16"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stdout == "launcher says no\n", answer.stderr
    assert launcher_options([*launch, "--cpu", str(script)]).get("mixed_precision") is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MIXED_PRECISION", "fp16", "mixed precision fp16 is not supported.*legal: no, bf16"),
        (
            "GRADIENT_ACCUMULATION_STEPS",
            "4",
            "accumulation over 4 steps is not supported; legal: 1",
        ),
        ("DYNAMO_BACKEND", "INDUCTOR", "dynamo backend INDUCTOR is not supported; legal: NO"),
    ],
)
def test_what_the_loop_would_do_by_halves_is_refused(
    variable: str, value: str, message: str
) -> None:
    # A process of its own: accelerate keeps its first state for life.
    code = "from omnisparse.training.launch import make_accelerator; make_accelerator()"
    environment = {**os.environ, f"ACCELERATE_{variable}": value}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert re.search(message, answer.stderr)
