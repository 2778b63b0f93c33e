"""Signals that stop a training: real ones, in real processes, each with a whole checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from omnisparse.config import RunConfig, config_to_yaml
from omnisparse.pipeline.train import train
from omnisparse.training.checkpoint import load_newest
from omnisparse.training.stop_signals import STOPPING, InterruptedTrainingError, StopSignals


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "saving; press again to abandon"),
        (signal.SIGTERM, 143, "saving: SIGTERM arrived"),
        (signal.SIGUSR1, 138, "saving: SIGUSR1 arrived"),
    ],
)
def test_each_signal_has_its_exit_code_and_leaves_a_checkpoint(
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: int,
    code: int,
    said: str,
) -> None:
    def stop(step: int, max_steps: int, metrics: object) -> None:
        if step == 3:
            for _ in range(2):  # `timeout` signals its child, and then its group
                os.kill(os.getpid(), number)

    with pytest.raises(InterruptedTrainingError, match="step 3 of 10: the checkpoint") as stopped:
        train(tiny_config(), out=tmp_path, on_progress=stop)
    os.kill(os.getpid(), number)  # torchrun passes it on late
    assert stopped.value.exit_code == code
    newest = load_newest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.step == 3
    assert str(newest.path) in str(stopped.value)
    assert capfd.readouterr().err == f"omnisparse: {said}\n"


def test_the_caller_has_its_own_handler_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        for echoes in (True, False):
            signals = StopSignals()
            monkeypatch.setattr(signals, "_is_echo", lambda: echoes)  # noqa: B023
            with signals.caught():
                os.kill(os.getpid(), signal.SIGTERM)
            assert signals.number == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)
            assert len(seen) == (0 if echoes else 1)
        with StopSignals().caught():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
        for number in STOPPING:
            if not isinstance(signal.getsignal(number), int | type(signal.default_int_handler)):
                signal.signal(number, signal.SIG_DFL)


def test_timeout_stops_a_training_by_one_line_and_a_whole_checkpoint(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    timeout = shutil.which("timeout")
    if timeout is None:
        pytest.skip("no timeout here")
    config = tiny_config(max_steps=3000, checkpoint_every=3)
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    command = [sys.executable, "-m", "omnisparse.cli", "train", "config.yaml", "--out", "run"]
    process = subprocess.Popen(
        [timeout, "-s", "INT", "600", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list((tmp_path / "run").glob("checkpoints/step-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # passed on to the child, and to the group of both
    stderr = process.communicate(timeout=120)[1]
    newest = load_newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert process.returncode == 130
    assert stderr.splitlines()[-2:] == [
        "omnisparse: saving; press again to abandon",
        f"omnisparse: stopped by SIGINT at step {newest.step} of 3000: the checkpoint "
        f"{newest.path} is whole, the same command continues from there",
    ]
    assert "Traceback" not in stderr
