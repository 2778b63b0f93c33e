"""A CTC layer, which only training uses, is in no artifact and no budget; its run keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig
from omnisparse.models import LasConfig, build_model
from omnisparse.pipeline.train import train
from omnisparse.runs import directory as runs
from omnisparse.sparsity.budget import Budget

Configs = Callable[..., RunConfig]


def run_json(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(verbs, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def with_ctc(config: RunConfig, weight: float = 0.3) -> RunConfig:
    return replace(config, model=replace(config.model, ctc_weight=weight))


@pytest.fixture
def trained(tiny_config: Configs, tmp_path: Path) -> tuple[RunConfig, Path]:
    config = with_ctc(tiny_config("las", "sandwich", max_steps=2))
    return config, train(config, out=tmp_path / "run").run


def test_the_layer_is_in_the_run_and_in_nothing_made_from_it(
    trained: tuple[RunConfig, Path], tmp_path: Path, speech: Path
) -> None:
    config, run = trained
    assert isinstance(config.model, LasConfig)
    plain = build_model(replace(config.model, ctc_weight=0.0), input_dim=240, vocab_size=40)
    shipped = sum(parameter.numel() for parameter in plain.parameters())
    head = 40 * (config.model.encoder_dim + 1)
    whole = runs.load_model(run).model
    assert sum(parameter.numel() for parameter in whole.parameters()) == shipped + head
    assert Budget.of(whole, ["encoder.layers.0.weight_hh_l0"]).dense_parameters == shipped
    assert run_json("inspect", run)["parameters"] == shipped

    half = run_json("extract", "--run", run, "--size", "50%", "--out", tmp_path / "half")
    assert (half["parameters"], half["nonzero"]) == (shipped, round(shipped / 2))
    model = runs.load_model(tmp_path / "half").model
    assert model.ctc_output is None
    nested = run_json("extract", "--run", run, "--nested", "--out", tmp_path / "net.omni")
    assert nested["parameters"] == shipped

    # With the layer, which then counts, for word times.
    timed = run_json("extract", "--run", run, "--size", "100%", "--times", "--out", tmp_path / "t")
    assert timed["parameters"] == shipped + head
    assert runs.load_model(tmp_path / "t").model.ctc_output is not None

    # The words are those of the run's own net, with and without.
    texts = [
        json.loads(
            CliRunner()
            .invoke(verbs, ["transcribe", str(place), str(wav), "--json"], catch_exceptions=False)
            .stdout
        )["results"][0]["text"]
        for wav in [next(iter(sorted((speech).rglob("*.wav"))))]
        for place in (run, tmp_path / "t", _dense(run, tmp_path))
    ]
    assert len(set(texts)) == 1


def _dense(run: Path, tmp_path: Path) -> Path:
    run_json("extract", "--run", run, "--size", "100%", "--out", tmp_path / "dense")
    return tmp_path / "dense"


def test_a_run_that_starts_from_an_artifact_begins_a_new_layer_and_says_so(
    trained: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, run = trained
    artifact = _dense(run, tmp_path)
    again = replace(config, training=replace(config.training, max_steps=0))
    lines: list[str] = []
    train(replace(again, init=str(artifact)), out=tmp_path / "a", on_stage=lines.append)
    assert [line for line in lines if "has no CTC layer" in line and "begins a new one" in line]
    begun, source = runs.load_model(tmp_path / "a").model, runs.load_model(run).model
    assert begun.ctc_output is not None
    assert source.ctc_output is not None
    assert begun.encoder.layers[0].weight_hh_l0.equal(source.encoder.layers[0].weight_hh_l0)  # type: ignore[index]
    assert not begun.ctc_output.weight.equal(source.ctc_output.weight)

    lines.clear()  # from the run itself the layer comes along, and factorised, too
    train(replace(again, init=str(run)), out=tmp_path / "b", on_stage=lines.append)
    kept = runs.load_model(tmp_path / "b").model.ctc_output
    assert kept is not None
    assert kept.weight.equal(source.ctc_output.weight)
    assert not any("CTC" in line for line in lines)
    factored = replace(again.model, encoder_projection=10)
    train(
        replace(again, model=factored, init=str(artifact)),
        out=tmp_path / "c",
        on_stage=lines.append,
    )
    assert any("layers factorised" in line for line in lines)
    train(with_ctc(replace(again, init=str(run)), 0.0), out=tmp_path / "d", on_stage=lines.append)
    assert any("has a CTC layer, which this run does not train" in line for line in lines)


def test_a_run_of_before_counts_its_layer(trained: tuple[RunConfig, Path], tmp_path: Path) -> None:
    """Its ``model.json`` names no layer of training, so its sizes stay what they were."""
    _, run = trained
    document = json.loads((run / "model.json").read_text())
    head = document.pop("training_only")
    assert head == ["ctc_output.weight", "ctc_output.bias"]
    before = run_json("inspect", run)["parameters"]
    document["parameters"] += head
    (run / "model.json").write_text(json.dumps(document))
    after = run_json("inspect", run)["parameters"]
    assert after > before
    half = run_json("extract", "--run", run, "--size", "50%", "--out", tmp_path / "half")
    assert half["parameters"] == after
    assert runs.load_model(tmp_path / "half").model.ctc_output is not None
    whole = runs.load_model(run).model
    assert Budget.of(whole, ["encoder.layers.0.weight_hh_l0"]).dense_parameters == after
