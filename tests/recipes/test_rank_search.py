"""A search of ranks in a real net on real speech, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omnisparse.cli.main import verbs

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "0.5x"], "size '0.5x' is no compression; legal: 1x or more"),
        (["--sizes", "500x"], "cannot be reached"),
        (["--sizes", "20MB"], "is in bytes"),
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
