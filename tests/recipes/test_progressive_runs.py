"""Compression over several stages through the one pipeline: starts, teachers, kills, rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from omnisparse.cli.baseline import plan_baseline, read_row
from omnisparse.cli.main import verbs
from omnisparse.cli.train import run_recipe
from omnisparse.config import RunConfig, config_to_yaml
from omnisparse.errors import OmnisparseError
from omnisparse.methods import DistillationConfig, GradualPruningConfig, ProgressiveConfig
from omnisparse.methods.handover import hand_over
from omnisparse.models import TransducerConfig
from omnisparse.pipeline import progressive
from omnisparse.pipeline.extract import extract
from omnisparse.pipeline.stages import dev_rate
from omnisparse.pipeline.train import train
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_record
from omnisparse.training.checkpoint import load_newest

ROOT = Path(__file__).parents[2]
Configs = Callable[..., RunConfig]


@pytest.fixture
def conformer(tiny_config: Configs) -> Callable[..., RunConfig]:
    """A tiny Conformer transducer in three stages of a few steps."""

    def make(max_steps: int = 4, **method: Any) -> RunConfig:
        base = tiny_config("transducer", "dense", max_steps=max_steps, checkpoint_every=1)
        model = TransducerConfig(
            encoder="conformer", encoder_layers=3, encoder_dim=16, encoder_heads=2,
            encoder_feed_forward=48, segment=4, left_context=4, predictor_dim=16, joiner_dim=16,
            embedding_dim=8, predictor_warmup=0, encoder_kernel=3,
        )  # fmt: skip
        options: dict[str, Any] = {"size": "60%", "stages": 2, "promote": "last", **method}
        return replace(base, model=model, method=ProgressiveConfig(**options))

    return make


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint.tensors["model"]


def test_a_stage_takes_over_weights_tokenizer_and_cost(
    conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    lines: list[str] = []
    config = conformer(max_steps=5)
    result = train(config, out=tmp_path / "end", on_stage=lines.append)
    places = [tmp_path / name for name in ("end-dense", "end-stage1", "end")]
    assert result.run == places[-1]
    records = [read_record(place) for place in places]
    assert [record.training.optimizer_steps for record in records] == [5, 2, 3]  # equal in all
    assert [record.row for record in records] == ["base", "part", "progressive"]
    assert records[2].size == "60%"
    # The whole chain is in the cost of the last, each training once.
    assert {one.run for one in records[2].sources} == {"end-dense", "end-stage1"}
    before = sum(record.training.utterance_passes for record in records[:2])
    assert records[2].account.teacher_utterance_passes == before > 0
    pieces = {(place / "tokenizer.model").read_bytes() for place in places}
    assert len(pieces) == 1
    sizes = [runs.inspect(place)["parameters"] for place in places]
    assert sizes == sorted(sizes, reverse=True)
    assert 0.5 * sizes[0] < sizes[-1] <= 0.6 * sizes[0]
    assert sum("as far as they fit" in line for line in lines) == 2
    # Asked again, nothing is trained.
    assert train(config, out=tmp_path / "end").steps == 3


def test_a_stage_starts_as_what_fits_of_the_stage_before(
    conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    train(conformer(max_steps=0), out=tmp_path / "end")
    for before, after in (("end-dense", "end-stage1"), ("end-stage1", "end")):
        larger, smaller = (runs.load_model(tmp_path / name).model for name in (before, after))
        expected = hand_over(larger, smaller)
        found = weights(tmp_path / after)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("by", ["rank", "sparsity"])
def test_stages_by_rank_and_by_sparsity(
    by: str, conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    result = train(conformer(max_steps=4, by=by), out=tmp_path / "end")
    counted, dense = runs.inspect(result.run), runs.inspect(tmp_path / "end-dense")
    assert 0.55 * dense["parameters"] < counted["nonzero"] <= 0.6 * dense["parameters"] + 1
    if by == "sparsity":
        middle, end = (weights(tmp_path / name) for name in ("end-stage1", "end"))
        pruned = [name for name in runs.read_description(result.run).prunable]
        assert pruned
        assert all((end[name] == 0).sum() >= (middle[name] == 0).sum() > 0 for name in pruned)
    assert runs.load_model(result.run).model is not None


@pytest.mark.parametrize(
    ("plan", "names", "method"),
    [
        ("fixed", ["end", "end-dense", "end-stage1"], DistillationConfig),
        ("direct", ["end", "end-dense"], DistillationConfig),
        ("scratch", ["end"], None),
    ],
)
def test_rivals_take_the_same_steps(
    plan: str, names: list[str], method: Any, conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = conformer(plan=plan)
    result = train(config, out=tmp_path / "end")
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    record = read_record(result.run)
    assert record.row == f"progressive_{plan}"
    own = [name for name in names if name != "end-dense"]
    assert sum(read_record(tmp_path / name).training.optimizer_steps for name in own) == 4
    text = (result.run / "config.yaml").read_text()
    assert ("end-dense" in text) == (method is not None)
    assert {one.run for one in record.sources} == set(names) - {"end"}


def test_a_run_that_never_trains_a_part_of_its_net_says_so(
    conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = conformer(plan="scratch", max_steps=3)
    for joiner, says in ((1, True), (0, False)):
        model = replace(config.model, ctc_weight=0.3, predictor_warmup=2, joiner_warmup=joiner)
        lines: list[str] = []
        train(replace(config, model=model), out=tmp_path / f"{joiner}", on_stage=lines.append)
        assert any("keeps its random weights" in line for line in lines) == says


def test_a_part_of_the_budget_has_that_part_of_the_phases(
    conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = conformer(max_steps=400)
    model = replace(config.model, ctc_weight=0.3, predictor_warmup=100, joiner_warmup=20)
    file = tmp_path / "config.yaml"
    file.write_text(config_to_yaml(replace(config, model=model)))
    for budget, steps, phases in (("0.25", 100, (25, 5)), ("1", 400, (100, 20)), ("2x", 800, None)):
        request = ["method=progressive_scratch", "size=60%", f"budget={budget}"]
        row = read_row(file, request)[-1]
        assert isinstance(row.model, TransducerConfig)
        assert row.training.max_steps == steps
        assert (row.model.predictor_warmup, row.model.joiner_warmup) == (phases or (100, 20))


def test_the_best_stage_so_far_teaches(
    conformer: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = conformer(stages=3, promote="best")
    rates = {"dense": 9.0, "stage1": 8.0, "stage2": 8.5}
    monkeypatch.setattr(progressive, "dev_rate", lambda run, config, tell: rates[run.name])
    teachers, evaluations = [], []
    stages = progressive.progressive_stages(
        config, tmp_path / "end", row=None, size=None, tell=lambda line: None
    )
    stage = next(stages)
    for name in ("dense", "stage1", "stage2"):
        stage = stages.send(Path(name))
        assert isinstance(stage.config.method, DistillationConfig)
        assert stage.config.init == name
        teachers.append(stage.config.method.teacher)
        evaluations.append(stage.search_evaluations)
    assert teachers == ["dense", "stage1", "stage1"]
    assert evaluations == [0, 0, 3]
    assert stage.is_last


def test_a_rate_on_the_dev_split_is_measured_once(
    conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = conformer(max_steps=0, promote="best")
    lines: list[str] = []
    train(config, out=tmp_path / "end", on_stage=lines.append)
    assert sum("% WER on the dev split" in line for line in lines) == 2
    kept = tmp_path / "end-dense" / "dev_rate.json"
    before = kept.stat().st_mtime_ns
    measured = json.loads(kept.read_text())
    wrong = {"key": {**measured["key"], "weights": "other"}, "wer": 1.0}
    train(config, out=tmp_path / "end")
    assert kept.stat().st_mtime_ns == before
    kept.write_text(json.dumps(wrong))
    train(config, out=tmp_path / "end")
    assert json.loads(kept.read_text()) == measured
    artifact = Path(extract(tmp_path / "end-dense", size="100%")["path"])
    files = sorted(artifact.iterdir())
    assert dev_rate(artifact, config, lines.append) == measured["wer"]
    assert sorted(artifact.iterdir()) == files


KILLED = """
import os, signal, sys
from pathlib import Path
from omnisparse.config import load_config
from omnisparse.pipeline.train import train
done = 0
def count(step, steps, metrics):
    global done
    done += 1
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
train(load_config(Path(sys.argv[1])), out=Path(sys.argv[2]), on_progress=count)
"""


def test_a_compression_killed_within_a_stage_goes_on_bit_for_bit(
    conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = conformer(max_steps=6, promote="best")
    file = tmp_path / "config.yaml"
    file.write_text(config_to_yaml(config))
    # 6 steps of the dense net, then the second of three steps of the first student.
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(file), str(tmp_path / "killed"), "8"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert read_record(tmp_path / "killed-stage1").training.optimizer_steps < 3
    assert not (tmp_path / "killed").exists()
    train(config, out=tmp_path / "killed")
    train(config, out=tmp_path / "whole")
    one, other = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_reached_is_named_before_anything_is_trained(
    conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(OmnisparseError, match=r"cannot be reached with fewer layers; legal: "):
        train(conformer(size="1%"), out=tmp_path / "end")
    with pytest.raises(OmnisparseError, match=r"starts from its first teacher; legal: method\."):
        train(replace(conformer(), init=str(tmp_path)), out=tmp_path / "end")
    assert not list(tmp_path.iterdir())


def test_init_may_be_larger_only_if_that_is_asked_for(
    conformer: Callable[..., RunConfig], tmp_path: Path
) -> None:
    base = replace(conformer(max_steps=0), method=DistillationConfig(teacher="none"))
    whole = train(replace(conformer(max_steps=0, plan="scratch")), out=tmp_path / "small").run
    config = replace(
        base, method=GradualPruningConfig(size="90%", prunable=()), init=str(whole),
        model=replace(runs_model(whole), encoder_layers=1),
    )  # fmt: skip
    with pytest.raises(OmnisparseError, match="absent here|legal: a net of the same shape"):
        train(config, out=tmp_path / "no")
    assert train(replace(config, reduce_init=True), out=tmp_path / "yes").steps == 0


def runs_model(run: Path) -> TransducerConfig:
    fields = dict(runs.read_description(run).model)
    return TransducerConfig(
        **{k: v for k, v in fields.items() if k not in ("input_dim", "vocab_size")}
    )


def test_plans_are_rows_of_the_recipe_and_of_the_table(
    conformer: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(config_to_yaml(conformer(max_steps=2)))
    for method in ("progressive", "progressive_scratch"):
        arguments = ["--config", str(file), f"method={method}", "size=60%", "method.promote=last"]
        assert run_recipe(arguments, plan=plan_baseline) == 0
    names = [f"runs/tiny-{row}-60pct-s0" for row in ("progressive", "progressive-scratch")]
    assert Path("runs/tiny-base-s0").is_dir()  # the teacher
    result = CliRunner().invoke(verbs, ["compare", "runs/tiny-base-s0", *names, "--json"])
    assert result.exit_code == 0, result.stderr
    cells = {cell["row"]: cell for cell in json.loads(result.stdout)["rows"]}
    assert set(cells) == {"base", "progressive", "progressive_scratch"}
    assert cells["progressive"]["size"] == "60%"
    assert cells["progressive_scratch"]["teacher_utterance_passes"] == 0
    # The dense net and the first stage.
    assert cells["progressive"]["teacher_utterance_passes"] > cells["base"]["utterance_passes"]
