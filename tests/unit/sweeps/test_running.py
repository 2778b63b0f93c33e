"""Sweeps that run: several at once, failures, results of bayes, arrays, W&B's own agent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig, config_to_yaml
from omnisparse.errors import OmnisparseError
from omnisparse.sweeps.file import SweepError, load_sweep
from omnisparse.sweeps.local import FAILED, FINISHED, run_sweep
from omnisparse.sweeps.slurm import write_array
from omnisparse.training.checkpoint import list_checkpoints, load_newest

PROGRAM = """
import json, os, pathlib, sys, time
given = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
place = pathlib.Path("runs") / "-".join(f"{k}{v}" for k, v in given.items())
place.mkdir(parents=True, exist_ok=True)
starts = place / "starts"
starts.write_text((starts.read_text() if starts.exists() else "") + f"{time.time()} ")
time.sleep(float(given.get("sleep", 0)))
(place / "end").write_text(str(time.time()))
count = len(starts.read_text().split())
code = {"twice": 1, "once": 1 if count == 1 else 0, "usage": 2}.get(given.get("fails"), 0)
if code:
    print(f"omnisparse: error: it failed, start {count}")
    sys.exit(code)
metrics = {"loss": (float(given.get("x", 0)) - 3) ** 2 + 10 * (given.get("kind") == "bad")}
answer = {"run": str(place.absolute()), "metrics": metrics}
pathlib.Path(os.environ["OMNISPARSE_RESULT_FILE"]).write_text(json.dumps(answer))
"""


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)

    def write(parameters: dict[str, Any], **changes: Any) -> Path:
        document = {
            "program": "program.py",
            "method": "grid",
            "parameters": parameters,
            "command": ["${interpreter}", "${program}", "${args}"],
            **changes,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def test_several_run_at_once_and_the_results_are_in_order(sweep_file: Callable[..., Path]) -> None:
    path = sweep_file({"x": {"values": [1, 2, 3, 4]}, "sleep": {"value": 0.5}})
    runs = run_sweep(load_sweep(path), Path("out"), jobs=3)
    assert [run["parameters"]["x"] for run in runs] == [1, 2, 3, 4]
    assert {run["status"] for run in runs} == {FINISHED}
    starts = [float(Path(run["run"], "starts").read_text().split()[0]) for run in runs]
    ends = [float(Path(run["run"], "end").read_text()) for run in runs]
    together = [sum(s <= start < e for s, e in zip(starts, ends, strict=True)) for start in starts]
    assert max(together) == 3
    again = run_sweep(load_sweep(path), Path("out"), jobs=3)
    assert [run["started"] for run in again] == [False] * 4


def test_a_failed_run_is_started_once_more_and_then_reported(
    sweep_file: Callable[..., Path],
) -> None:
    path = sweep_file({"fails": {"values": ["once", "twice", "usage", "no"]}})
    told: list[str] = []
    runs = run_sweep(load_sweep(path), Path("out"), tell=told.append)
    assert [(run["status"], run["attempts"], run["exit_code"]) for run in runs] == [
        (FINISHED, 2, 0), (FAILED, 2, 1), (FAILED, 1, 2), (FINISHED, 1, 0),
    ]  # fmt: skip
    assert runs[1]["error"] == "it failed, start 2"
    assert sum(line.endswith("once more") for line in told) == 2
    done = CliRunner().invoke(verbs, ["sweep", str(path), "--local", "--out", "out"])
    assert done.exit_code == 1
    assert "2 of 4 runs finished" in done.stderr
    assert "failed: fails=twice: it failed, start 4" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("compare them")]
    assert line.count(str(Path("runs").absolute())) == 2


def test_bayes_finds_better_points_and_goes_on_where_it_was(
    sweep_file: Callable[..., Path],
) -> None:
    path = sweep_file(
        {"x": {"min": -20.0, "max": 20.0}, "kind": {"values": ["bad", "good"]}},
        method="bayes",
        metric={"name": "loss", "goal": "minimize"},
    )
    sweep = load_sweep(path)
    runs = run_sweep(sweep, Path("whole"), count=16)
    assert all(run["metric"] == pytest.approx(_loss(run["parameters"])) for run in runs)
    first, last = runs[:5], runs[5:]
    assert min(run["metric"] for run in last) < min(run["metric"] for run in first)
    good = [run["parameters"]["kind"] == "good" for run in last]
    assert sum(good) > len(good) / 2
    run_sweep(sweep, Path("parts"), count=6)
    parts = run_sweep(sweep, Path("parts"), count=16)
    assert [run["started"] for run in parts] == [False] * 6 + [True] * 10
    assert [run["parameters"] for run in parts] == [run["parameters"] for run in runs]
    other = load_sweep(sweep_file({"x": {"min": 0.0, "max": 1.0}}, method="bayes",
                                  metric={"name": "none"}))  # fmt: skip
    told: list[str] = []
    (run,) = run_sweep(other, Path("none"), count=1, tell=told.append)
    assert (run["status"], run["metric"]) == (FINISHED, None)
    assert told[-1].endswith("(no metric none)")
    with pytest.raises(SweepError, match="needs run_cap or --count"):
        run_sweep(other, Path("none"))
    Path("none/points.json").write_text("{")
    with pytest.raises(OmnisparseError, match=r"points\.json: cannot be read"):
        run_sweep(other, Path("none"), count=2)


def _loss(point: dict[str, Any]) -> float:
    return float((point["x"] - 3) ** 2 + 10 * (point["kind"] == "bad"))


def test_a_signal_ends_all_runs_and_the_same_command_goes_on(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = sweep_file({"x": {"values": [1, 2, 3]}, "sleep": {"value": 60}})
    command = [sys.executable, "-m", "omnisparse.cli", "sweep", str(path), "--local", "--jobs=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(Path("runs").glob("*/starts"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 143, stderr
    assert "stopped with 0 of 3 runs done; the same command continues" in stderr
    state = json.loads((tmp_path / "sweeps" / "sweep" / "runs.json").read_text())
    assert {entry["status"] for entry in state.values()} == {"interrupted"}
    assert len(state) == 2


def run_task(script: Path, number: int) -> subprocess.Popen[bytes]:
    variables = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "7"}
    return subprocess.Popen(["bash", str(script)], env={**os.environ, **variables})


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_tasks_of_an_array_run_one_point_each_and_the_sweep_collects_them(
    sweep_file: Callable[..., Path],
) -> None:
    path = sweep_file({"x": {"values": [1, 2]}, "note": {"values": ["it's $HOME; ls"]}})
    done = CliRunner().invoke(verbs, ["sweep", str(path), "--slurm", "--out", "my out", "--json"])
    assert done.exit_code == 0, done.stderr
    script = Path(json.loads(done.stdout)["script"])
    assert "#SBATCH --array=0-1%1\n" in script.read_text()
    assert [run_task(script, number).wait() for number in range(2)] == [0, 0]
    assert Path("runs", "noteit's $HOME; ls-x1").is_dir()
    runs = run_sweep(load_sweep(path), Path("my out"))
    assert [(run["status"], run["started"]) for run in runs] == [(FINISHED, False)] * 2
    with pytest.raises(SweepError, match="legal for an array are grid and random"):
        write_array(
            load_sweep(sweep_file({"x": {"min": 0.0, "max": 1.0}}, method="bayes",
                                  metric={"name": "loss"})), Path("b"), jobs=1)  # fmt: skip


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_task_passes_the_signal_on_and_ends_with_the_code_of_its_run(
    sweep_file: Callable[..., Path],
) -> None:
    saves = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3),"
        " open('saved', 'w').close(), sys.exit(143)))\nopen('ready', 'w').close()\ntime.sleep(60)\n"
    )
    path = sweep_file({"x": {"values": [1]}})
    Path("program.py").write_text(saves)
    task = run_task(write_array(load_sweep(path), Path("out"), jobs=1), 0)
    deadline = time.monotonic() + 30
    while not Path("ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    task.send_signal(signal.SIGTERM)
    assert task.wait(timeout=30) == 143
    assert Path("saved").exists()


class NoServer:
    """What an agent asks of the server, answered by nobody."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


@pytest.mark.slow
def test_wandbs_own_agent_starts_and_stops_a_training(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code builds the command, starts the process, and stops it by SIGTERM."""
    wandb_agent = pytest.importorskip("wandb.wandb_agent")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    recipe = str(Path(__file__).parents[3] / "recipes" / "train_supernet.py")
    (tmp_path / "config.yaml").write_text(config_to_yaml(tiny_config(checkpoint_every=3)))
    agent = object.__new__(wandb_agent.Agent)
    agent.__dict__.update(
        _api=NoServer(), _in_jupyter=False, _function=None, _forward_signals=False,
        _run_processes={}, _kill_delay=wandb_agent.Agent.KILL_DELAY, _last_report_time=None,
        _sweep_command=["${env}", "${interpreter}", "${program}", "--config", "config.yaml",
                        "--out", "run", "${args}"],
    )  # fmt: skip
    arguments = {"training.max_steps": {"value": 3000}, "method.min_size": {"value": "50%"}}
    agent._command_run({"run_id": "r1", "program": recipe, "args": arguments})
    process = agent._run_processes["r1"]
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 200
    while not list_checkpoints(checkpoints) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    started = time.monotonic()
    agent._command_stop({"run_id": "r1"})
    while (code := process.poll()) is None and time.monotonic() < started + 60:
        time.sleep(0.05)
    assert code == 143  # not 0: W&B would take the run for finished
    assert time.monotonic() - started < agent._kill_delay
    newest = load_newest(checkpoints)
    assert newest is not None
    assert newest.state["record"]["max_steps"] == 3000
    assert not (tmp_path / "runs" / "latest").exists()
    assert "min_size: 50%" in (tmp_path / "run" / "config.yaml").read_text()
