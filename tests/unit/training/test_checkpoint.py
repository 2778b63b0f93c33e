"""Checkpoints: whole or absent, damaged ones passed over, no pickle."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from omnisparse.errors import FormatError
from omnisparse.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    read_state,
    save_checkpoint,
)


def save(root: Path, step: int, keep: int = 2) -> Path:
    tensors = {"model": {"w": torch.full((4, 3), float(step))}, "optimizer": {}}
    return save_checkpoint(root, step=step, tensors=tensors, state={"epoch": step}, keep=keep)


def test_round_trip_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    newest = load_newest(tmp_path)
    assert newest is not None
    assert (newest.step, newest.state) == (3, {"epoch": 3})
    assert torch.equal(newest.tensors["model"]["w"], torch.full((4, 3), 3.0))


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    names = {path.name for path in save(tmp_path, 1).iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "state"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: str
) -> None:
    save(tmp_path, 1)
    broken = save(tmp_path, 2)
    file = broken / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-3])
    elif damage == "remove":
        file.unlink()
    else:
        (broken / "state.json").write_text("{")
    with pytest.raises(FormatError, match="step-00000002"):
        load_checkpoint(broken)
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_a_damaged_checkpoint_does_not_stay_the_newest(tmp_path: Path) -> None:
    for keep in (1, 2):
        save(tmp_path, 8, keep=2)  # damaged, and passed over; the run went on from one before
        assert save(tmp_path, 7, keep=keep) in list_checkpoints(tmp_path)
        assert list_checkpoints(tmp_path)[-1].name == "step-00000007"


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent") is None
    (save(tmp_path, 1) / "state.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(FormatError, match="not a checkpoint of format"):
        load_newest(tmp_path)


def test_a_failing_write_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnisparse.training.checkpoint.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_disk_that_takes_no_more_leaves_the_earlier_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-00000009.77.partial").mkdir()  # of a kill: its room is needed
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_every_bit_of_the_state_is_guarded_and_older_checkpoints_are_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "state.json"
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (1, 4, 32):
            damaged = bytearray(content)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            try:
                document = read_state(path.parent)
            except FormatError:
                continue
            assert document == json.loads(content) | document  # space for another space
            assert chr(content[place]).isspace()
    document = json.loads(content)
    del document["crc32"]  # as of an earlier version
    path.write_text(json.dumps(document))
    assert load_checkpoint(path.parent).step == 1


@pytest.mark.multiprocess
def test_kill_while_saving_never_leaves_half_a_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from omnisparse.training.checkpoint import save_checkpoint\n"
        "print('ready', flush=True)\n"
        "for step in range(1, 100000):\n"
        "    save_checkpoint(Path(sys.argv[1]), step=step,\n"
        "        tensors={'model': {'w': torch.full((300000,), float(step))}}, state={})\n"
    )
    seen = 0
    for wait in (0.05, 0.11, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        while not list_checkpoints(tmp_path):
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in list_checkpoints(tmp_path):
            checkpoint = load_checkpoint(path)  # raises if it is not whole
            assert bool((checkpoint.tensors["model"]["w"] == checkpoint.step).all())
            seen += 1
    assert seen
