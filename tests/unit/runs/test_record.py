"""The bill of a run: its own training, and every training it needed, each once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from omnisparse.data.batching import DataConfig
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.evaluation.account import TrainingAccount
from omnisparse.runs.record import make_record, read_record, total_cost
from omnisparse.training.checkpoint import save_checkpoint


@dataclass
class Distillation:
    teacher: str = ""


@dataclass
class Config:
    """As much of a run configuration as a record looks at."""

    seed: int = 0
    init: str | None = None
    method: Distillation = field(default_factory=Distillation)
    data: DataConfig = field(default_factory=DataConfig)


def make_run(root: Path, name: str, passes: float, config: Config, *, steps: int = 5) -> Path:
    """A run of which there is only the checkpoint."""
    record = make_record(config, row="distilled", size="25%", commit="abc")
    save_checkpoint(
        root / name / "checkpoints",
        step=steps,
        tensors={"model": {"w": torch.full((3,), passes)}},
        state={
            "cost": {"utterance_passes": passes, "device_seconds": passes / 10},
            "record": record,
        },
        keep=9,
    )
    return root / name


def test_teachers_of_teachers_are_billed_once(tmp_path: Path) -> None:
    teacher = make_run(tmp_path, "teacher", 100.0, Config())
    start = make_run(tmp_path, "start", 20.0, Config(method=Distillation(str(teacher))))
    run = make_run(
        tmp_path,
        "student",
        80.0,
        Config(seed=4, init=str(start), method=Distillation(str(teacher))),
    )
    record = read_record(run)
    assert {source.run for source in record.sources} == {"teacher", "start"}
    assert record.account == TrainingAccount(
        utterance_passes=80.0, optimizer_steps=5, device_seconds=8.0,
        teacher_utterance_passes=120.0, teacher_device_seconds=12.0, seed=4, commit="abc",
    )  # fmt: skip
    assert (record.row, record.size) == ("distilled", "25%")
    other = read_record(make_run(tmp_path, "other", 70.0, Config(init=str(teacher))))
    cost = total_cost([record.training, *record.sources, other.training, *other.sources])
    assert (cost["trainings"], cost["utterance_passes"]) == (4, 100.0 + 20.0 + 80.0 + 70.0)


def test_operations_and_decoding_are_in_the_bill(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", 5.0, Config())
    state = run / "checkpoints" / "step-00000005" / "state.json"
    before = json.loads(state.read_text())
    assert (read_record(run).account.flops, read_record(run).account.teacher_flops) == (None, 0.0)
    document = json.loads(state.read_text())
    del document["crc32"]  # as of an earlier version
    document["state"]["cost"]["flops"] = 7e12
    state.write_text(json.dumps(document))
    assert read_record(run).account.flops == 7e12
    document["state"]["record"]["decoding"] = {
        "utterances": 40, "flops": 3e12, "device_seconds": 2.5,
    }  # fmt: skip
    state.write_text(json.dumps(document))
    account = read_record(run).account
    assert (account.flops, account.utterance_passes, account.device_seconds) == (1e13, 45.0, 3.0)
    document["state"]["record"]["decoding"]["flops"] = None  # a cache of an earlier version
    state.write_text(json.dumps(document))
    assert read_record(run).account.flops is None
    student = read_record(make_run(tmp_path, "student", 5.0, Config(init=str(run))))
    assert student.account.teacher_flops is None
    state.write_text(json.dumps(before))
    assert total_cost([student.training])["flops"] is None


def test_a_partly_trained_source_costs_what_its_checkpoint_says(tmp_path: Path) -> None:
    make_run(tmp_path, "long", 10.0, Config(), steps=1)
    long = make_run(tmp_path, "long", 90.0, Config(), steps=9)
    early = long / "checkpoints" / "step-00000001"
    record = read_record(make_run(tmp_path, "run", 5.0, Config(init=str(early))))
    (source,) = record.sources
    assert (source.run, source.utterance_passes, source.optimizer_steps) == ("long", 10.0, 1)


def test_sources_outlive_their_runs(tmp_path: Path) -> None:
    import shutil

    teacher = make_run(tmp_path, "teacher", 100.0, Config())
    run = make_run(tmp_path, "run", 5.0, Config(init=str(teacher)))
    shutil.rmtree(teacher)
    assert read_record(run).account.teacher_utterance_passes == 100.0
    with pytest.raises(OmnisparseError, match="teacher: does not exist"):
        make_record(Config(init=str(teacher)), row=None, size=None, commit=None)


def test_a_run_from_before_there_were_records_has_what_it_has(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", 5.0, Config())
    state = run / "checkpoints" / "step-00000005" / "state.json"
    document = json.loads(state.read_text())
    del document["crc32"]  # as of an earlier version
    document["state"]["record"] = {"max_steps": 5, "commit": "old"}
    state.write_text(json.dumps(document))
    record = read_record(run)
    assert (record.row, record.seed, record.commit, record.sources) == (None, None, "old", ())
    document["state"]["record"] = {"sources": [{"what": 1}]}
    state.write_text(json.dumps(document))
    with pytest.raises(FormatError, match="record cannot be read"):
        read_record(run)


def test_an_account_from_elsewhere_is_checked() -> None:
    account = TrainingAccount(utterance_passes=3.0, seed=1, commit="x")
    assert TrainingAccount.from_dict({**asdict(account), "run": "r"}) == account
    bad: list[dict[str, Any]] = [{"device_seconds": "9"}, {"seed": True}, {"commit": 3}]
    for document in bad:
        with pytest.raises(ValueError, match=next(iter(document))):
            TrainingAccount.from_dict(document)
