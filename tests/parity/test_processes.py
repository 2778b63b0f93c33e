"""Two real processes give the gradient of one, and the recipe starts them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnisparse.config import RunConfig, config_to_yaml
from omnisparse.data.corpora import load_manifest
from omnisparse.evaluation.evaluate import Decoder, evaluate
from omnisparse.runs.directory import load_model
from omnisparse.training.checkpoint import load_newest

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
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for processes in (1, 2):
        # Two also compute their shares in parts, of which the last alone is synchronised.
        training = dataclasses.replace(
            config.training, accumulate=3 * processes - 2, evaluate_every=1, evaluate_utterances=6
        )
        text = config_to_yaml(dataclasses.replace(config, training=training))
        (tmp_path / f"config{processes}.yaml").write_text(text)
        command = [*torchrun, f"--nproc_per_node={processes}", str(WORKER)]
        command.append(f"config{processes}.yaml")
        run([*command, f"run{processes}", f"gradient{processes}.safetensors"], tmp_path)
    one, two = (load_file(tmp_path / f"gradient{n}.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    assert max(float(gradient.abs().max()) for gradient in one.values()) > 1e-3
    assert model == "las" or {name for name in one if not one[name].any()} == set()
    for name, gradient in one.items():
        # Sums in another order: rounding is of the size of the largest entries.
        rounding = 2e-5 * float(gradient.abs().max())
        torch.testing.assert_close(gradient, two[name], rtol=1e-4, atol=rounding, msg=name)
    files = [tmp_path / f"run{n}" / "metrics.jsonl" for n in (1, 2)]
    logged = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    losses = [lines[0] for lines in logged]
    rates = [next(line["dev/wer"] for line in lines if "dev/wer" in line) for lines in logged]
    assert rates[0] == rates[1]
    assert all((tmp_path / f"run{n}/weights/best/checkpoints").is_dir() for n in (1, 2))
    for key in ("loss/dense", "loss/smallest", "loss/random_0", "utterance_passes"):
        assert losses[0][key] == pytest.approx(losses[1][key], rel=1e-4), key


def test_two_processes_hear_a_dev_set_as_one_does(speech: Path, tmp_path: Path) -> None:
    trained = Path(__file__).parents[1] / "fixtures" / "f1feb7c" / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = str(WORKER.with_name("evaluation_worker.py"))
    arguments = [str(trained), str(speech / "train.jsonl"), "."]
    run([*torchrun, "--nproc_per_node=2", worker, *arguments], tmp_path)
    loaded = load_model(trained)
    cuts = load_manifest(speech / "train.jsonl", sampling_rate=16000)
    decoder = Decoder(loaded.model, loaded.extractor, loaded.tokenizer, batch_seconds=8.0)
    expected = evaluate(decoder, cuts)
    rows = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for row in rows:
        assert row["wer"] == expected.wer
        assert row["texts"] == [one.hypothesis for one in expected.hypotheses]
        assert 0 < row["own"] < len(cuts)
        assert row["failed"] == "no audio"
    assert sum(row["own"] for row in rows) == len(cuts)


def test_accelerate_starts_two_cpu_processes_and_both_stop_at_one_ctrl_c(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """The terminal sends SIGINT to all processes, torchrun once more to its two."""
    config = tiny_config(max_steps=3000, checkpoint_every=3)
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    recipe = str(ROOT / "recipes" / "train_supernet.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*launch, recipe, "--config", "config.yaml", "--out", "run"],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(checkpoints.glob("step-*")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=120)[1]
    assert "2 CPU processes" in stderr
    ours = [line for line in stderr.splitlines() if line.startswith("omnisparse: ")]
    assert ours[0] == "omnisparse: saving; press again to abandon"
    newest = load_newest(checkpoints)
    assert newest is not None
    assert ours[1:] == [
        f"omnisparse: stopped by SIGINT at step {newest.step} of 3000: the checkpoint "
        f"{newest.path} is whole, the same command continues from there; what follows is the "
        "launcher's"
    ]
    assert "omnisparse/training" not in stderr  # no traceback of ours
    assert newest.state["processes"] == 2
    assert torch.isfinite(newest.tensors["model"]["output.weight"]).all()
