"""Where metrics go, and what becomes of W&B when a run is resumed or W&B cannot be had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from matplotlib import figure
from wandb_rows import history_of

from omnisparse.errors import OmnisparseError
from omnisparse.training.tracking import Tracker, TrackingConfig, log_comparison
from omnisparse.training.wandb_file import _records, read_history


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def steps_of(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_resumed_run_drops_what_it_does_again(tmp_path: Path) -> None:
    first = Tracker(tmp_path, TrackingConfig(), run_config={})
    for step in (1, 2, 3):
        first.log(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed here

    second = Tracker(tmp_path, TrackingConfig(), run_config={}, resumed_step=2)
    second.log(3, {"loss": 0.5})
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_resumed_run_is_the_same_run_in_wandb(tmp_path: Path) -> None:
    config = TrackingConfig(wandb="offline")
    for resumed in (0, 1):
        tracker = Tracker(tmp_path, config, run_config={"a": {"b": 1}}, resumed_step=resumed)
        tracker.log(resumed + 1, {"loss": 1.0})
        tracker.close({"loss": 1.0})
    records = list((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb-id").read_text()
    assert records
    # offline-run-<second>-<run>, and "-1" behind it where both began in one second
    assert {path.name.split("-")[3] for path in records} == {identity}


def test_a_step_has_one_value_in_wandb_whatever_was_killed(tmp_path: Path) -> None:
    config = TrackingConfig(wandb="offline")

    def start(resumed: int, rows: list[int], saved: int) -> list[int]:
        """Log rows, write a checkpoint behind one of them, and be killed."""
        tracker = Tracker(tmp_path, config, run_config={}, resumed_step=resumed)
        for step in rows:
            tracker.log(step, {"loss": float(step)})
            tracker.log(step, {"dev/wer": 10.0 * step})
            if step == saved:
                tracker.checkpointed(step)
        tracker.close()
        found = history_of(tmp_path)
        assert all(row == {"loss": float(step), "dev/wer": 10.0 * step} for step, row in found)
        return [step for step, _ in found]

    assert start(0, [1, 2, 3], 2) == [1, 2]
    assert start(2, [3, 4], 4) == [1, 2, 3, 4]
    assert start(2, [3, 4], 4) == [1, 2, 3, 4]  # the checkpoint of 4 was damaged
    assert start(4, [5], 0) == [1, 2, 3, 4]  # killed behind the checkpoint of 5, nothing sent
    assert start(5, [6], 6) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("told", [True, False])  # killed behind its checkpoint at once, or later
def test_rows_that_wandb_lost_in_a_kill_are_given_to_it_again(tmp_path: Path, told: bool) -> None:
    """W&B's process holds rows back: a process killed behind its checkpoint leaves none of them."""
    code = (
        "import os, sys; from pathlib import Path; "
        "from omnisparse.training.tracking import Tracker, TrackingConfig; "
        "t = Tracker(Path(sys.argv[1]), TrackingConfig(wandb='offline'), run_config={}); "
        "[t.log(step, {'loss': float(step)}) for step in (1, 2, 3)]; "
        f"t.checkpointed({2 if told else 0}); os.kill(os.getpid(), 9)"
    )
    # Its own process of W&B, not that of the tests.
    environment = {name: os.environ[name] for name in os.environ if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "wandb-sent").read_text())["sent"] == (2 if told else -1)
    assert steps_of(tmp_path) == [1, 2, 3]
    again = Tracker(tmp_path, TrackingConfig(wandb="offline"), run_config={}, resumed_step=2)
    again.log(3, {"loss": 3.0})
    again.checkpointed(3)
    again.close({})
    assert [step for step, _ in history_of(tmp_path)] == [1, 2, 3]


def test_what_is_no_file_of_wandb_has_no_rows(tmp_path: Path) -> None:
    for content in (b"", b":W&B", b"text", b":W&B\xe1\xbe\x00" + bytes(40)):
        (tmp_path / "x.wandb").write_bytes(content)
        assert read_history(tmp_path / "x.wandb") == []
    assert read_history(tmp_path / "absent.wandb") == []


def test_rows_of_before_are_sent_where_wandb_joins_later(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(wandb="off"), run_config={})
    for step in (1, 2, 3):
        tracker.log(step, {"loss": float(step)})
    tracker = Tracker(tmp_path, TrackingConfig(wandb="offline"), run_config={}, resumed_step=2)
    tracker.log(3, {"loss": 3.0})
    tracker.checkpointed(3)
    tracker.close({})
    assert [step for step, _ in history_of(tmp_path)] == [1, 2, 3]
    assert json.loads((tmp_path / "wandb-sent").read_text())["sent"] == 3


def test_a_comparison_is_logged_as_table_and_plot(tmp_path: Path) -> None:
    plot = tmp_path / "compare.png"
    figure.Figure(figsize=(1, 1)).savefig(plot)
    rows = [{"row": "pruned", "wer": 9.5}, {"row": "supernet", "wer": 7.3}]
    for mode in ("off", "offline"):
        log_comparison(
            TrackingConfig(wandb=mode), name="c", folder=tmp_path, table=rows, images=[plot]
        )
        assert (tmp_path / "wandb").exists() == (mode == "offline")
    (table,) = (tmp_path / "wandb").rglob("media/**/*.table.json")
    assert json.loads(table.read_text())["data"] == [["pruned", 9.5], ["supernet", 7.3]]
    (image,) = (tmp_path / "wandb").rglob("media/**/*.png")
    assert image.read_bytes() == plot.read_bytes()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("offline", "offline"), ("dryrun", "offline"), ("online", "online"), ("disabled", None)],
)
def test_auto_follows_the_environment(
    mode: str, expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    modes: list[object] = []
    monkeypatch.setattr(wandb, "init", lambda **fields: modes.append(fields["mode"]))
    Tracker(tmp_path, TrackingConfig(), run_config={})
    assert modes == ([expected] if expected else [])


def test_wandb_that_fails_is_an_error_only_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**fields: object) -> None:
        raise wandb.errors.CommError("no\nroute")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(OmnisparseError, match=r"tracking\.wandb=online: W&B says no route"):
        Tracker(tmp_path, TrackingConfig(wandb="online"), run_config={})

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    Tracker(tmp_path, TrackingConfig(), run_config={}).log(1, {"loss": 1.0})
    assert capsys.readouterr().err == "continuing without W&B, it cannot be started: no route\n"
    assert steps_of(tmp_path) == [1]

    rows = [{"method": "pruned", "wer": 9.5}]
    options: dict[str, Any] = {"name": "c", "folder": tmp_path, "table": rows, "images": []}
    log_comparison(TrackingConfig(), **options)
    assert capsys.readouterr().err.startswith("continuing without W&B")
    with pytest.raises(OmnisparseError, match=r"tracking\.wandb=online: W&B says no route"):
        log_comparison(TrackingConfig(wandb="online"), **options)


def test_wandb_is_told_of_a_preemption_and_that_the_run_did_not_end_well(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(wandb="offline"), run_config={})
    tracker.log(1, {"loss": 1.0})
    tracker.checkpointed(1)
    tracker.preempted()
    tracker.close(None)
    assert history_of(tmp_path)  # waits for the end of the file
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(_records(file))
    assert "preempting" in {record.WhichOneof("record_type") for record in records}
    (end,) = [one.exit for one in records if one.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 1  # a sweep's agent takes up only what ended with another code than 0
    Tracker(tmp_path / "..", TrackingConfig(wandb="off"), run_config={}).preempted()
