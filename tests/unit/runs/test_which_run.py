"""Which run is this, and is it still trained on what it began with?"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from omnisparse.config import RunConfig, override_config
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.train import train
from omnisparse.runs import directory as runs
from omnisparse.runs.listing import list_runs, summarize
from omnisparse.runs.trained_on import FILE
from omnisparse.training.stop_signals import InterruptedTrainingError

Make = Callable[..., RunConfig]
MakeManifest = Callable[..., Path]


@pytest.fixture
def manifest(write_corpus: MakeManifest, tmp_path: Path) -> Path:
    """A small corpus that a test may change."""
    return write_corpus(tmp_path / "corpus", 12)


@pytest.fixture
def config(tiny_config: Make, manifest: Path, tmp_path: Path) -> RunConfig:
    own = [f"corpus.train=[{manifest}]", f"corpus.root={tmp_path}", "data.vocab_size=30"]
    return override_config(tiny_config(max_steps=3), own)


def stop_at_once(step: int, max_steps: int, metrics: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def lines_of(manifest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def rewrite(manifest: Path, lines: Sequence[dict[str, object]]) -> None:
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_resumed_run_is_trained_on_what_it_began_with(
    config: RunConfig, manifest: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(InterruptedTrainingError):
        train(config, out=run, on_progress=stop_at_once)
    lines, first = lines_of(manifest), manifest.parent / "audio" / "train000.wav"
    sound = first.read_bytes()
    changes: dict[str, list[dict[str, object]]] = {
        r"2 gone \(train010, train011\)": lines[:10],
        r"1 new \(other\)": [*lines, {**lines[0], "id": "other"}],
        r"1 with another transcript \(train000\)": [{**lines[0], "text": "nine"}, *lines[1:]],
        r"12 gone .*, 12 new \(a0, a1, a2, \.\.\.\)": [
            {**line, "id": f"a{number}"} for number, line in enumerate(lines)
        ],
        "the same in another order": lines[::-1],
    }
    for message, changed in changes.items():
        rewrite(manifest, changed)
        with pytest.raises(OmnisparseError, match=message) as refused:
            train(config, out=run)
        assert "\n" not in str(refused.value)
        assert "--accept-changes" in str(refused.value)
    rewrite(manifest, lines)
    first.write_bytes(sound[:-2] + bytes([sound[-2] ^ 1, sound[-1]]))  # its last sample
    with pytest.raises(OmnisparseError, match=r"1 with other audio \(train000\)"):
        train(config, out=run)
    first.write_bytes(sound)
    assert train(config, out=run).steps == 3  # what was put back is what it began with


def test_a_finished_run_is_not_what_other_data_would_give(
    config: RunConfig, manifest: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(config, out=run)
    lines = lines_of(manifest)
    rewrite(manifest, lines[:-1])
    with pytest.raises(OmnisparseError, match=r"since it began: .*1 gone \(train011\)"):
        train(config, out=run)
    said: list[str] = []
    assert train(config, out=run, accept_changes=True, on_stage=said.append).steps == 3
    assert any("goes on with what has changed" in line for line in said)
    manifest.unlink()
    said.clear()
    assert train(config, out=run, on_stage=said.append).steps == 3  # nothing to compare it with
    assert any("is not compared, it cannot be read" in line for line in said)


def test_changed_data_is_gone_on_with_where_that_is_asked_for(
    config: RunConfig, manifest: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(InterruptedTrainingError):
        train(config, out=run, on_progress=stop_at_once)
    features = runs.read_description(run).features
    rewrite(manifest, lines_of(manifest)[:4])
    said: list[str] = []
    assert train(config, out=run, accept_changes=True, on_stage=said.append).steps == 3
    assert "the data has fewer batches than before: it goes on with epoch 1" in said
    assert runs.read_description(run).features == features  # what its weights are used to
    assert train(config, out=run).steps == 3  # the new data is the run's now


def test_a_run_that_kept_no_list_of_its_data_is_continued_and_says_so(
    config: RunConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(InterruptedTrainingError):
        train(config, out=run, on_progress=stop_at_once)
    (run / FILE).unlink()
    said: list[str] = []
    assert train(config, out=run, on_stage=said.append).steps == 3
    assert any("has no list of its data" in line for line in said)


@pytest.mark.parametrize("key", ["init", "method.teacher"])
def test_the_nets_that_a_run_was_started_with_may_not_be_exchanged(
    config: RunConfig, tmp_path: Path, key: str
) -> None:
    for seed in (0, 1):
        start = dataclasses.replace(config, seed=seed)
        start = override_config(start, ["training.max_steps=0", "method=dense"])
        train(start, out=tmp_path / f"start{seed}")
    method = "dense" if key == "init" else "{kind: distillation, teacher: unset, label_weight: 1}"
    student = override_config(config, [f"method={method}", f"{key}={tmp_path / 'start0'}"])
    with pytest.raises(InterruptedTrainingError):
        train(student, out=tmp_path / "run", on_progress=stop_at_once)
    (tmp_path / "start0").rename(tmp_path / "away")
    shutil.copytree(tmp_path / "start1", tmp_path / "start0")
    with pytest.raises(OmnisparseError, match=rf"{key} was 0-\w+ and is 0-\w+; legal: "):
        train(student, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "start0")
    (tmp_path / "away").rename(tmp_path / "start0")
    assert train(student, out=tmp_path / "run").steps == 3


def test_fine_tuning_takes_pieces_and_statistics_of_the_net_it_starts_from(
    config: RunConfig, write_corpus: MakeManifest, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    train(override_config(config, ["training.max_steps=1", "method=dense"]), out=base)
    other = write_corpus(tmp_path / "other", 14)
    rewrite(other, [{**line, "text": "a window on the hill"} for line in lines_of(other)])
    tuned = override_config(config, [f"corpus.train=[{other}]", f"init={base}", "method=dense"])
    theirs = runs.read_description(base).features
    pieces = (base / "tokenizer.model").read_bytes()
    said: list[str] = []
    train(
        override_config(tuned, ["training.max_steps=0"]), out=tmp_path / "a", on_stage=said.append
    )
    assert (tmp_path / "a" / "tokenizer.model").read_bytes() == pieces
    assert f"word pieces of {base}" in said
    alone = override_config(tuned, ["init=null", "training.max_steps=0"])
    other_pieces = train(alone, out=tmp_path / "alone").run
    with pytest.raises(OmnisparseError, match=r"data\.tokenizer=RUN takes the pieces of a run"):
        train(override_config(tuned, [f"data.tokenizer={other_pieces}"]), out=tmp_path / "refused")
    for number, (choice, source) in enumerate(
        [("auto", base), ("init", base / "tokenizer.model"), ("own", base)]
    ):
        out, said = tmp_path / f"tuned{number}", []
        settings = [f"data.tokenizer={source}", f"data.statistics={choice}"]
        chosen = override_config(tuned, [*settings, "training.max_steps=0"])
        train(chosen, out=out, on_stage=said.append)
        assert (out / "tokenizer.model").read_bytes() == pieces
        assert (out / "tokens.txt").read_text() == (base / "tokens.txt").read_text()
        assert (runs.read_description(out).features == theirs) is (choice != "own")
        whose = "this run's training data" if choice == "own" else str(base)
        assert f"features are normalised by the statistics of {whose}" in said
        assert f"word pieces of {source}" in said
        for one, two in zip(
            runs.load_model(out).model.state_dict().values(),
            runs.load_model(base).model.state_dict().values(),
            strict=True,
        ):
            assert torch.equal(one, two)
    with pytest.raises(OmnisparseError, match="a run, an artifact or a tokenizer"):
        train(override_config(tuned, ["data.tokenizer=absent"]), out=tmp_path / "absent")
    with pytest.raises(OmnisparseError, match=r"data\.statistics is 'init' without init"):
        override_config(config, ["data.statistics=init"])


def test_the_first_line_says_which_run_it_is_and_only_what_was_asked_for_is_the_latest(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def first_lines(settings: list[str], **options: object) -> list[str]:
        said: list[str] = []
        chosen = override_config(config, settings)
        train(chosen, on_stage=said.append, **options)  # type: ignore[arg-type]
        return said[: next(n for n, line in enumerate(said) if line.startswith("run ")) + 1]

    def latest() -> str:
        return runs.latest_run().name

    assert first_lines(["training.max_steps=1"]) == ["run runs/tiny: new"]
    assert first_lines(["training.max_steps=1"]) == ["run runs/tiny: already finished (1 steps)"]
    assert first_lines(["training.max_steps=0"]) == [
        "runs/tiny holds another run: training.max_steps is 1 there and 0 here",
        "run runs/tiny-2: new",
    ]
    assert latest() == "tiny-2"
    first_lines(["name=teacher", "training.max_steps=0"], is_helper=True)
    for variable in ("OMNISPARSE_SWEEP", "WANDB_SWEEP_ID"):
        monkeypatch.setenv(variable, "x")
        first_lines([f"name={variable.lower()}", "training.max_steps=0"])
        monkeypatch.delenv(variable)
    assert latest() == "tiny-2"
    first_lines(["training.max_steps=1"])
    assert latest() == "tiny"  # asked for again

    with pytest.raises(InterruptedTrainingError):
        train(dataclasses.replace(config, name="stopped"), on_progress=stop_at_once)
    assert summarize(Path("runs/stopped")).describe() == "continued at step 1 of 3"
    listed = {run.name: run for run in list_runs()}
    assert listed["stopped"].state == "stopped"
    assert [name for name, run in listed.items() if run.latest] == ["stopped"]
    assert (listed["tiny"].state, listed["tiny"].steps, listed["tiny"].max_steps) == (
        "finished", 1, 1,
    )  # fmt: skip
    parameters = sum(p.numel() for p in runs.load_model("runs/tiny").model.parameters())
    assert listed["tiny"].parameters == parameters
    assert next(iter(listed)) == "stopped"  # the newest first


def test_runs_are_listed_whatever_state_they_are_in(tmp_path: Path) -> None:
    for name in ("new", "damaged", "folder"):
        (tmp_path / name).mkdir()
    for name in ("new", "damaged"):
        (tmp_path / name / "config.yaml").write_text("name: x\n")
    (tmp_path / "damaged" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "damaged" / "metrics.jsonl").write_text(
        '{"step": 1, "dev/wer": 50.0}\n{"step": 2, "dev/wer": 12.5}\n{"step": 3, "dev/wer": 1'
    )
    (tmp_path / "link").symlink_to("new")
    listed = {run.name: run for run in list_runs(tmp_path)}
    assert {name: run.state for name, run in listed.items()} == {
        "new": "no checkpoint", "damaged": "damaged",
    }  # fmt: skip
    assert listed["damaged"].dev_wer == 12.5
    assert list_runs(tmp_path / "absent") == []
    with pytest.raises(OmnisparseError, match="is not a directory"):
        list_runs(tmp_path / "new" / "config.yaml")


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux tells who holds a file")
def test_a_run_in_training_is_called_so(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: x\n")
    with (tmp_path / "run" / ".lock").open("w") as lock:
        assert summarize(tmp_path / "run").state == "no checkpoint"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert summarize(tmp_path / "run").state == "training"
    assert summarize(tmp_path / "run").state == "no checkpoint"
