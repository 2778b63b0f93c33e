"""Folders that ``extract`` chooses: no model replaces one that was made with other options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnisparse.models import LasConfig, build_model
from omnisparse.pipeline import extract_in_time
from omnisparse.runs import directory as runs
from omnisparse.runs.directory import RunDescription, write_description
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.training.checkpoint import load_newest, save_checkpoint

SMALL = LasConfig(
    encoder_layers=2, encoder_dim=24, attention_dim=8, attention_heads=2, decoder_layers=1,
    decoder_dim=24, embedding_dim=8, ctc_weight=0.3,
)  # fmt: skip
OPTIONS: list[tuple[str, ...]] = [(), ("--precision", "int8"), ("--precision", "fp16")]


def paths(run_json: Callable[..., Any], *request: object) -> list[str]:
    return [run_json("extract", *request, *options)["path"] for options in OPTIONS]


@pytest.fixture
def own(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def test_sizes_that_one_pruning_kept(own: Path, run_json: Callable[..., Any]) -> None:
    shutil.copytree(own, own / "weights" / "size-60pct")
    checkpoint = load_newest(own / "checkpoints")
    assert checkpoint is not None
    weights = dict(checkpoint.tensors["model"])
    for name in runs.read_description(own).prunable:
        weights[name] = torch.where(weights[name] > weights[name].quantile(0.9), weights[name], 0.0)
    save_checkpoint(own / "checkpoints", step=8, tensors={"model": weights}, state={"step": 8})
    found = paths(run_json, "--run", own, "--size", "60%")
    assert found == [
        str(own / "extracted" / name) for name in ("60pct", "60pct-int8", "60pct-fp16")
    ]
    assert run_json("inspect", found[0])["nonzero"] > 2 * run_json("inspect", own)["nonzero"]


def test_an_artifact_says_which_weights_of_which_run_it_has(
    own: Path, tmp_path: Path, run_json: Callable[..., Any]
) -> None:
    ema = own / "weights" / "ema"
    shutil.copytree(own, ema)
    checkpoint = load_newest(own / "checkpoints")
    assert checkpoint is not None
    state = {"step": 8, "weights": "ema"}
    save_checkpoint(ema / "checkpoints", step=8, tensors=checkpoint.tensors, state=state)
    (tmp_path / "latest").symlink_to(own)
    for options, name, weights in (((), "run", "last"), (("--weights", "ema"), "run/ema", "ema")):
        path = run_json("extract", "--run", tmp_path / "latest", "--size", "60%", *options)["path"]
        source = json.loads((Path(path) / "config.json").read_text())["omnisparse"]["source"]
        assert (source["run"], source["weights"]) == (name, weights)


def test_sizes_by_time(
    own: Path, run_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_in_time, "latency_of", lambda recognizer: 1e-3)
    monkeypatch.setattr(extract_in_time.Recognizer, "from_path", lambda path, **options: None)
    found = paths(run_json, "--run", own, "--latency", "5ms")
    names = ("latency-5ms", "latency-5ms-int8", "latency-5ms-fp16")
    assert found == [str(own / "extracted" / name) for name in names]


def test_nested_files(own: Path, run_json: Callable[..., Any]) -> None:
    found = paths(run_json, "--run", own, "--nested")
    found.append(run_json("extract", "--run", own, "--nested", "--floor", "0.1")["path"])
    names = ("run", "run-int8", "run-fp16", "run-floor0.1")
    assert found == [str(own / "extracted" / f"{name}.nested") for name in names]


@pytest.fixture
def factored(own: Path) -> Path:
    """A run all of whose prunable matrices are products."""
    whole = build_model(SMALL, input_dim=24, vocab_size=40)
    config = replace(SMALL, ranks=dict.fromkeys(find_prunable(whole), 3))
    net = build_model(config, input_dim=24, vocab_size=40)
    description = RunDescription(
        model={"kind": "las", **asdict(config), "input_dim": 24, "vocab_size": 40},
        features={"num_bins": 80},
        prunable=[],
        parameters=list(net.shipped_parameters()),
        training_only=list(net.training_only()),
        method="dense",
    )
    write_description(own, description)
    save_checkpoint(
        own / "checkpoints", step=8, tensors={"model": net.state_dict()}, state={"step": 8}
    )
    return own


def test_a_factored_net(factored: Path, run: Callable[..., Any], run_json: Any) -> None:
    found = paths(run_json, "--run", factored, "--size", "100%")
    found.append(run_json("extract", "--run", factored, "--sparsity", "0", "--times")["path"])
    names = ("100pct", "100pct-int8", "100pct-fp16", "100pct-times")
    assert found == [str(factored / "extracted" / name) for name in names]
    plain, times = (run_json("inspect", found[index])["parameters"] for index in (0, 3))
    assert times - plain == 40 * 24 + 40  # the CTC layer
    for size in ("1", "1B", "50%"):
        refused = run("extract", "--run", factored, "--size", size)
        assert refused.exit_code == 2
        assert "legal: --size 100%" in refused.stderr
    for request in (("--latency", "5ms"), ("--nested",)):
        refused = run("extract", "--run", factored, *request)
        assert refused.exit_code == 1
        assert refused.stderr.startswith("omnisparse: error: the net has no matrix to prune")
        assert len(refused.stderr) < 300


def test_lower_ranks_of_a_factored_net(factored: Path, run_json: Callable[..., Any]) -> None:
    has = run_json("inspect", factored)["parameters"]
    lower = run_json("extract", "--run", factored, "--low-rank", "--size", has - 500)
    assert lower["parameters"] <= has - 500
    assert 1 in lower["ranks"].values()
    assert max(lower["ranks"].values()) <= 3, "a rank that the net has not is worth nothing"
    assert run_json("inspect", lower["path"])["parameters"] == lower["parameters"]
    source = json.loads((Path(lower["path"]) / "config.json").read_text())["omnisparse"]["source"]
    assert source.get("smallest_trained") in (None, has)
