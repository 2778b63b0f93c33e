"""Two real processes give the gradient of one, and the recipe starts them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnisparse.config import RunConfig, config_to_yaml

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("gradient_worker.py")


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize(
    ("model", "distill", "max_batch_size", "lattice_nodes"),
    [
        ("las", "posteriors", 6, "all"),
        ("transducer", "both", 6, "occupied"),
        ("transducer", "posteriors", 1, "all"),
    ],
)
def test_two_processes_give_the_gradient_of_one(
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    model: str,
    distill: str,
    max_batch_size: int,  # 1: the second process has nothing of its own
    lattice_nodes: str,
) -> None:
    config = tiny_config(model, max_steps=1)
    # Dropout draws differ between processes, and a first step by CTC alone would leave most of a
    # transducer without a gradient to compare.
    whole = {"predictor_warmup": 0, "ctc_weight": 0.3} if model == "transducer" else {}
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0, **whole),
        method=dataclasses.replace(
            config.method,
            warmup_fraction=0.0,
            distill=distill,
            full_batch=max_batch_size == 1,
            lattice_nodes=lattice_nodes,
        ),
        data=dataclasses.replace(config.data, max_batch_size=max_batch_size),
    )
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for processes in (1, 2):
        command = [*torchrun, f"--nproc_per_node={processes}", str(WORKER), "config.yaml"]
        run([*command, f"run{processes}", f"gradient{processes}.safetensors"], tmp_path)
    one, two = (load_file(tmp_path / f"gradient{n}.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    assert max(float(gradient.abs().max()) for gradient in one.values()) > 1e-3
    assert model == "las" or {name for name in one if not one[name].any()} == set()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-4, atol=1e-6, msg=name)
    losses = [
        json.loads((tmp_path / f"run{n}" / "metrics.jsonl").read_text().splitlines()[0])
        for n in (1, 2)
    ]
    for key in ("loss/dense", "loss/smallest", "loss/random_0", "utterance_passes"):
        assert losses[0][key] == pytest.approx(losses[1][key], rel=1e-4), key


def test_accelerate_starts_two_cpu_processes(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(config_to_yaml(tiny_config(max_steps=2)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    recipe = str(ROOT / "recipes" / "train_supernet.py")
    arguments = ["--config", "config.yaml", "--out", "run", "training.max_steps=3"]
    stderr = run([*launch, recipe, *arguments], tmp_path)
    assert "2 CPU processes" in stderr
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    state = json.loads((newest / "state.json").read_text())
    assert (state["step"], state["state"]["processes"]) == (3, 2)
    assert torch.isfinite(load_file(newest / "model.safetensors")["output.weight"]).all()
