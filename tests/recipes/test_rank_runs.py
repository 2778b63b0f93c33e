"""Searched ranks and rounds of compression through the one pipeline, on tiny nets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from omnisparse.cli.baseline import plan_baseline
from omnisparse.cli.main import verbs
from omnisparse.cli.train import run_recipe
from omnisparse.config import RunConfig, config_to_yaml
from omnisparse.errors import OmnisparseError
from omnisparse.methods import IterativeConfig, RankSearchMethodConfig
from omnisparse.models.factored import dense_state
from omnisparse.pipeline import rank_stages
from omnisparse.pipeline.low_rank import DenseRun
from omnisparse.pipeline.train import train
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_record

Configs = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def dense_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dense") / "run"


@pytest.fixture
def dense(tiny_config: Configs, dense_home: Path) -> Path:
    """A trained net of the demo's kind, tiny."""
    return train(tiny_config("las", "dense", max_steps=4), out=dense_home).run


@pytest.fixture
def ranked(tiny_config: Configs, dense: Path) -> Callable[..., RunConfig]:
    def make(kind: Any = RankSearchMethodConfig, steps: int = 4, **options: Any) -> RunConfig:
        base = tiny_config("las", "dense", max_steps=steps)
        method = kind(
            **{
                "size": "3x", "teacher": str(dense), "evaluations": 6, "utterances": 8,
                "controller": "random", **options,
            }
        )  # fmt: skip
        return replace(base, method=method)

    return make


def test_searched_ranks_without_retraining_are_the_products_that_were_measured(
    ranked: Callable[..., RunConfig], dense: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    config = ranked(retrain=False)
    result = train(config, out=tmp_path / "run", on_stage=lines.append)
    record = read_record(result.run)
    assert (record.row, record.training.optimizer_steps) == ("rank_search_untrained", 0)
    assert record.training.search_evaluations == 6
    assert [one.run for one in record.sources] == [dense.name]
    ranks = runs.read_description(result.run).model["ranks"]
    opened = DenseRun.open(dense)
    counted = runs.inspect(result.run)["parameters"]
    assert counted == opened.budget.parameters(ranks)
    assert record.size is not None
    assert counted <= int(record.size) == rank_total(opened)
    found = opened.decompositions(ranks)
    state = dense_state(runs.load_model(result.run).model)
    for name, rank in ranks.items():
        factors = found[name].factors(rank)
        torch.testing.assert_close(state[name], factors.left @ factors.right, rtol=1e-3, atol=1e-5)
    written = CliRunner().invoke(
        verbs, ["extract", "--run", str(result.run), "--size", "100%", "--json"]
    )
    model = json.loads(written.stdout)
    assert model["parameters"] == counted
    own, packed = (
        dense_state(runs.load_model(place).model) for place in (result.run, Path(model["path"]))
    )
    assert all(torch.equal(own[name], value) for name, value in packed.items())
    refused = CliRunner().invoke(verbs, ["extract", "--run", str(result.run), "--size", "50%"])
    assert refused.exit_code == 2
    assert "none can be pruned; legal: --size 100%, or --low-rank" in refused.stderr
    # Asked again, nothing is measured: the journal has the answers.
    again = train(config, out=tmp_path / "run")
    assert again.run == result.run


def rank_total(dense: DenseRun) -> int:
    budget = dense.budget
    return budget.fixed + (budget.dense - budget.fixed) // 3


@pytest.mark.parametrize(
    ("controller", "scheme"),
    [("uniform", "per_gate"), ("energy", "stacked"), ("rl", "joint"), ("rl", "per_gate")],
)
def test_every_control_retrains_as_long(
    controller: str, scheme: str, ranked: Callable[..., RunConfig], dense: Path, tmp_path: Path
) -> None:
    result = train(ranked(controller=controller, scheme=scheme, steps=3), out=tmp_path / "run")
    record = read_record(result.run)
    model = runs.read_description(result.run).model
    assert model["rank_scheme"] == scheme
    budget = DenseRun.open(dense, scheme).budget  # type: ignore[arg-type]
    assert runs.inspect(result.run)["parameters"] == budget.parameters(model["ranks"])
    assert record.training.optimizer_steps == 3
    assert record.training.search_evaluations == (6 if controller == "rl" else 0)
    assert record.row == ("rank_uniform" if controller == "uniform" else "rank_search")


@pytest.mark.parametrize("scheme", ["stacked", "joint"])
def test_rounds_share_steps_and_evaluations_and_ranks_only_fall(
    scheme: str, ranked: Callable[..., RunConfig], dense: Path, tmp_path: Path
) -> None:
    config = ranked(
        IterativeConfig, size="4x", rounds=2, tolerance=9.0, controller="rl", evaluations=8,
        distillation_weight=1.0, scheme=scheme, last_share=0.75,
    )  # fmt: skip
    lines: list[str] = []
    result = train(config, out=tmp_path / "end", on_stage=lines.append)
    first, last = tmp_path / "end-round1", tmp_path / "end"
    assert result.run == last
    records = [read_record(run) for run in (first, last)]
    assert [record.training.optimizer_steps for record in records] == [1, 3]
    asked = [line for line in lines if "candidates by rl" in line]
    assert [line.split(": ")[1] for line in asked] == ["2 candidates by rl", "6 candidates by rl"]
    assert [record.row for record in records] == ["part", "iterative"]
    assert records[1].training.search_evaluations == 8
    assert {one.run for one in records[1].sources} == {dense.name, "end-round1"}
    before, after = (dict(runs.read_description(run).model["ranks"]) for run in (first, last))
    assert all(after[name] <= rank for name, rank in before.items())
    sizes = [runs.inspect(run)["parameters"] for run in (dense, first, last)]
    assert sizes == sorted(sizes, reverse=True)
    wanted = records[1].size
    assert wanted is not None
    assert 0.8 * int(wanted) < sizes[-1] <= int(wanted)
    assert any("accepted" in line for line in lines)
    assert train(config, out=tmp_path / "end").run == last


@pytest.mark.parametrize(("last_share", "steps"), [(1.0, [0, 4]), (0.0, [4, 0])])
def test_a_round_may_have_no_share_of_the_steps(
    ranked: Callable[..., RunConfig], tmp_path: Path, last_share: float, steps: list[int]
) -> None:
    config = ranked(
        IterativeConfig, size="4x", rounds=2, controller="uniform", last_share=last_share
    )
    train(config, out=tmp_path / "end")
    records = [read_record(tmp_path / name) for name in ("end-round1", "end")]
    assert [record.training.optimizer_steps for record in records] == steps


def test_a_round_that_is_not_accepted_counts_and_is_left_behind(
    ranked: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dense: Path
) -> None:
    rates = {dense.name: 10.0, "end-round1": 30.0, "end-round2": 10.5}
    monkeypatch.setattr(rank_stages, "dev_rate", lambda run, config, tell: rates[run.name])
    config = ranked(
        IterativeConfig, size="4x", rounds=2, halvings=1, controller="uniform", steps=2,
        tolerance=0.1,
    )  # fmt: skip
    train(config, out=tmp_path / "end")
    sizes = {path.name: runs.inspect(path)["parameters"] for path in tmp_path.iterdir()}
    assert sizes["end-round2"] > sizes["end-round1"] > sizes["end"]
    record = read_record(tmp_path / "end")
    # The rejected round is no start of anything, but its cost is in the account.
    assert {one.run for one in record.sources} == {dense.name, "end-round1", "end-round2"}
    assert "end-round2" in (tmp_path / "end" / "config.yaml").read_text()
    assert "end-round1" not in (tmp_path / "end" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "500x"}, "cannot be reached by low rank; legal: "),
        ({"size": "100%"}, "is no compression of the"),
        ({"size": "0.5x"}, "is no compression; legal: 1x or more"),
    ],
)
def test_a_size_out_of_reach_is_named(
    options: dict[str, Any], message: str, ranked: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises((OmnisparseError, ValueError), match=message):
        train(ranked(**options), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ranks_and_rounds_are_rows_of_the_recipe_and_of_the_table(
    tiny_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(config_to_yaml(tiny_config("las", "dense", max_steps=2)))
    rows = {
        "rank_search": ["method.controller=random", "method.evaluations=4"],
        "rank_uniform": [],
        "iterative": ["method.controller=uniform", "method.rounds=2", "method.tolerance=9"],
    }
    for method, options in rows.items():
        arguments = ["--config", str(file), f"method={method}", "size=60%", *options]
        assert run_recipe(arguments, plan=plan_baseline) == 0
    names = [f"runs/tiny-{row.replace('_', '-')}-60pct-s0" for row in rows]
    result = CliRunner().invoke(verbs, ["compare", "runs/tiny-base-s0", *names, "--json"])
    assert result.exit_code == 0, result.stderr
    cells = {cell["row"]: cell for cell in json.loads(result.stdout)["rows"]}
    assert set(cells) == {"base", *rows}
    assert cells["rank_search"]["search_evaluations"] == 4
    assert {cell["size"] for row, cell in cells.items() if row != "base"} == {"60%"}
    costs = {row: cell["teacher_utterance_passes"] for row, cell in cells.items()}
    assert costs["iterative"] > costs["rank_search"] == cells["base"]["utterance_passes"] > 0
