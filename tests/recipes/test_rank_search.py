"""A search of ranks in a real net on real speech, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.pipeline import rank_search
from omnisparse.pipeline.rank_search import RankSearch, RankSearchConfig

TRAINED = Path(__file__).parents[1] / "fixtures" / "f1feb7c" / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(TRAINED, tmp_path_factory.mktemp("ranks") / "run"))


def invoke(*arguments: object) -> Any:
    result = CliRunner().invoke(verbs, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def search(run: Path, speech: Path, out: Path, *options: object) -> dict[str, Any]:
    result = invoke(
        "search", "--ranks", "--run", run, "--manifest", speech / "dev.jsonl", "--out", out,
        "--evaluations", 8, "--utterances", 8, "--json", *options,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("method", ["rl", "random", "tpe", "nsga2"])
def test_what_a_search_finds_is_extracted(
    method: str, trained: Path, speech: Path, tmp_path: Path
) -> None:
    found = search(trained, speech, tmp_path, "--sizes", "2x", "--method", method)
    (entry,) = found["front"]
    assert len(entry["rewards"]) == 8
    # Of the two best by reward the one that recognises better.
    finalists = sorted(set(entry["rewards"]))[-2:]
    assert any(entry["score"] == pytest.approx(-reward) for reward in finalists)
    spec = tmp_path / f"ranks-2x-{method}-0.json"
    result = invoke(
        "extract", "--run", trained, "--rank-spec", spec, "--out", tmp_path / "model", "--json"
    )
    assert json.loads(result.stdout)["parameters"] == entry["nonzero"]


def test_a_search_that_was_killed_has_the_same_episodes(
    trained: Path, speech: Path, tmp_path: Path
) -> None:
    whole = search(trained, speech, tmp_path, "--sizes", "2x")
    (journal,) = tmp_path.glob("evaluations-*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:7]) + lines[7][:20])  # as a kill in mid-line leaves it
    again = search(trained, speech, tmp_path, "--sizes", "2x")
    assert again["front"] == whole["front"]
    assert 0 < again["evaluated_now"] < whole["evaluated_now"]
    assert search(trained, speech, tmp_path, "--sizes", "2x")["evaluated_now"] == 0


def test_a_search_with_too_few_candidates_for_a_test_begins_at_equal_energy(
    trained: Path, speech: Path, tmp_path: Path
) -> None:
    config = RankSearchConfig(evaluations=2, utterances=8)
    search = RankSearch(trained, ["3x"], config, manifest=speech / "dev.jsonl", out=tmp_path)
    space = search.spaces["3x"]
    energy, uniform = (
        space.ranks(space.places(ranks))
        for ranks in (
            space.budget.by_energy(space.total, search.scores.found),
            space.budget.uniform(space.total),
        )
    )
    assert energy != uniform
    entry, _ = search.find("3x")
    assert entry["sensitivity_evaluations"] == 0
    assert entry["rewards"][0] == -search.scores.rate(energy, search.items)


def extracted(run: Path, out: Path, *request: object) -> dict[str, Any]:
    result = invoke("extract", "--run", run, *request, "--out", out, "--json")
    return dict(json.loads(result.stdout))


def test_a_size_in_bytes_is_that_of_the_files(trained: Path, speech: Path, tmp_path: Path) -> None:
    whole = extracted(trained, tmp_path / "whole", "--size", "100%")["bytes"]
    size = f"{int(0.7 * whole)}B"
    (entry,) = search(trained, speech, tmp_path, "--sizes", size)["front"]
    spec = tmp_path / f"ranks-{size}-rl-0.json"
    searched = extracted(trained, tmp_path / "searched", "--rank-spec", spec)
    uniform = extracted(trained, tmp_path / "uniform", "--low-rank", "--size", size)
    for answer in (searched, uniform):
        assert 0.6 * whole < answer["bytes"] <= 0.7 * whole
    assert searched["parameters"] == entry["nonzero"]


def test_a_budget_in_time_is_measured_once_and_held(
    trained: Path, speech: Path, tmp_path: Path
) -> None:
    options = ("--sizes", "1x", "--budget", "latency", "--method", "random")
    found = search(trained, speech, tmp_path, *options)
    (entry,) = found["front"]
    assert entry["product_ms"] <= entry["dense_product_ms"]
    again = search(trained, speech, tmp_path, *options)
    assert again["front"] == found["front"]
    assert again["evaluated_now"] == 0


def test_all_searches_of_a_folder_are_in_one_plot(
    trained: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    real = rank_search.plot_rewards

    def watch(curves: dict[str, Any], path: Path, *, title: str) -> None:
        drawn.append(dict(curves))
        real(curves, path, title=title)

    monkeypatch.setattr(rank_search, "plot_rewards", watch)
    for method, seed in (("rl", 0), ("random", 0), ("random", 1)):
        found = search(
            trained, speech, tmp_path, "--sizes", "2x", "--method", method, "--seed", seed
        )
    (place,) = map(Path, found["plots"])
    assert place.read_bytes().startswith(b"\x89PNG")
    assert {method: len(searches) for method, searches in drawn[-1].items()} == {
        "rl": 1, "random": 2,
    }  # fmt: skip
    assert all(len(rewards) == 8 for searches in drawn[-1].values() for _, rewards in searches)
    search(
        trained, speech, tmp_path, "--sizes", "2x", "--method", "random", "--seed", 2,
        "--objective", "wer",
    )  # fmt: skip
    assert {method: len(searches) for method, searches in drawn[-1].items()} == {"random": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "0.5x"], "size '0.5x' is no compression; legal: 1x or more"),
        (["--sizes", "500x"], "cannot be reached"),
        (["--sizes", "20MB"], "bytes cannot be reached by low rank; legal: "),
        (["--sizes", "50%", "--budget", "latency"], "size '50%' is no compression; legal: 1x"),
        (
            ["--sizes", "2x", "--budget", "latency", "--scheme", "joint"],
            "budget latency times products of scheme stacked, not joint",
        ),
        (["--sizes", ","], "sizes names no size"),
        (["--sizes", "2x", "--group", "a"], "do not go with --ranks"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    options: list[str], message: str, trained: Path, speech: Path
) -> None:
    result = invoke(
        "search", "--ranks", "--run", trained, "--manifest", speech / "dev.jsonl", *options
    )
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_rates_are_those_of_the_models_that_are_extracted(
    trained: Path, speech: Path, tmp_path: Path
) -> None:
    """Long utterances are recognised in pieces, as `evaluate` does it, and another length is told
    from this one by what was measured."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    document = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({**document, "trained_seconds": 1.2}))
    search(trained, speech, tmp_path / "found", "--sizes", "2x")  # of the same weights, uncut
    (entry,) = search(run, speech, tmp_path / "found", "--sizes", "2x")["front"]
    spec = tmp_path / "found" / "ranks-2x-rl-0.json"
    extracted(run, tmp_path / "model", "--rank-spec", spec)
    result = invoke(
        "evaluate", tmp_path / "model", "--manifest", speech / "dev.jsonl", "--json"
    )  # fmt: skip
    assert entry["wer"] == json.loads(result.stdout)["wer"]
