"""Budgets by time, and what models cost here, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from speaking_run import make_speaking_run

from omnisparse.sparsity.sizes import parse_latency


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small transducer with a real tokenizer and features."""
    return make_speaking_run(tmp_path_factory.mktemp("runs") / "small")


def test_a_generous_latency_gives_the_dense_net(
    speaking: Path, tmp_path: Path, run_json: Any
) -> None:
    found = run_json("extract", "--run", speaking, "--latency", "10s", "--out", tmp_path / "a")
    assert found["nonzero"] == found["parameters"]
    assert 0 < found["latency_ms"] <= 10_000
    assert found["rtf"] == pytest.approx(found["latency_ms"] / 40)
    assert len(found["trials"]) == 2
    assert run_json("inspect", tmp_path / "a")["problems"] == []
    again = run_json("extract", "--run", speaking, "--rtf", "250", "--out", tmp_path / "b")
    assert again["nonzero"] == found["nonzero"]


def test_a_limit_between_gives_a_size_between(
    speaking: Path, tmp_path: Path, run_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is made to be that of the weights, so that the answer is known."""
    from omnisparse.pipeline import extract_in_time as module

    monkeypatch.setattr(module, "latency_of", lambda r: r.engine.num_bytes / 1e9)
    whole = run_json("extract", "--run", speaking, "--latency", "1s", "--out", tmp_path / "a")
    limit = 0.5 * whole["latency_ms"]
    found = run_json(
        "extract", "--run", speaking, "--latency", f"{limit}ms", "--block", "8x1",
        "--out", tmp_path / "b",
    )  # fmt: skip
    assert 0.7 * limit < found["latency_ms"] <= limit
    slower = [t for t in found["trials"] if t["latency_ms"] > limit]
    assert min(t["nonzero"] for t in slower) > found["nonzero"]


def test_an_impossible_latency_names_the_fastest(speaking: Path, tmp_path: Path, run: Any) -> None:
    result = run("extract", "--run", speaking, "--latency", "0.0001ms", "--out", tmp_path / "a")
    assert result.exit_code == 1
    assert "the smallest (" in result.stderr
    assert "real-time factor" in result.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latency", "5"], "latency '5' is no time; legal: 5ms or 0.005s"),
        (["--latency", "0ms"], "latency '0ms' is no time"),
        (["--rtf", "0"], "0.0"),
        (["--latency", "5ms", "--size", "25%"], "exactly one of"),
        (["--latency", "5ms", "--rtf", "1"], "exactly one of"),
        (["--latency", "5ms", "--nested"], "--nested"),
        (["--latency", "5ms", "--from", "x"], "--from"),
        (["--latency", "5ms", "--front", "x"], "--front"),
    ],
)
def test_bad_usage(speaking: Path, run: Any, options: list[str], message: str) -> None:
    place = [] if "--from" in options else ["--run", speaking]
    result = run("extract", *place, *options)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr


def test_times_of_latency() -> None:
    assert parse_latency("5ms") == 0.005
    assert parse_latency(" 0.25 s ") == 0.25


def test_bench_of_our_runtime(speaking: Path, tmp_path: Path, run_json: Any) -> None:
    models = []
    for size in ("100%", "40%"):
        path = tmp_path / size.strip("%")
        run_json("extract", "--run", speaking, "--size", size, "--out", path)
        models.append(path)
    result = run_json("bench", *models, speaking, "--rounds", "2", "--out", tmp_path / "bench")
    dense, small, of_run = result["rows"]
    assert dense["file_bytes"] == run_json("inspect", models[0])["bytes"]  # the card is not read
    # Of a run neither the optimizer's state nor older checkpoints count.
    assert of_run["file_bytes"] == pytest.approx(dense["file_bytes"], rel=0.1)
    assert small["nonzero"] < dense["nonzero"]
    assert small["file_bytes"] < dense["file_bytes"]
    for row in result["rows"]:
        assert row["runtime"] == "sparse"
        assert row["rtf_least"] <= row["rtf"]
        assert row["latency_ms"] > 0
        assert row["load_seconds"] > 0
    kept = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert kept["rows"] == result["rows"]
    assert (tmp_path / "bench" / "bench.png").stat().st_size > 5000


def test_bench_names_what_is_wrong(speaking: Path, tmp_path: Path, run: Any) -> None:
    result = run("bench", speaking, "--runtimes", "fast")
    assert result.exit_code == 2
    assert "runtimes: fast; legal: all, sparse, torch" in result.stderr
    result = run("bench", tmp_path / "none")
    assert result.exit_code == 1
    assert "does not exist" in result.stderr
    result = run("bench", speaking, "--audio", tmp_path / "none.wav", "--rounds", "1")
    assert result.exit_code == 1
    assert "none.wav: no such file" in result.stderr


@pytest.mark.slow
def test_all_runtimes_say_the_same(speaking: Path, run_json: Any) -> None:
    result = run_json("bench", speaking, "--runtimes", "all", "--rounds", "2")
    texts = {row["runtime"]: row["text"] for row in result["rows"]}
    assert list(texts) == [
        "sparse", "torch", "onnxruntime", "onnxruntime-int8", "onnxruntime-packed",
    ]  # fmt: skip
    assert texts["sparse"] == texts["torch"] == texts["onnxruntime"] == texts["onnxruntime-packed"]
    assert texts["sparse"]


def test_bench_of_layers_times_every_packing(speaking: Path, tmp_path: Path, run_json: Any) -> None:
    for block, kinds in (("1x1", {"dense", "csr"}), ("8x1", {"dense", "block"})):
        path = tmp_path / block
        run_json("extract", "--run", speaking, "--size", "40%", "--block", block, "--out", path)
        result = run_json("bench", path, "--rounds", "1", "--layers")
        rows = result["layers"][str(path)]
        assert len(rows) == sum(
            layer["nonzero"] < layer["parameters"] for layer in run_json("inspect", path)["layers"]
        )
        for row in rows:
            assert kinds <= set(row["microseconds"])
            assert row["chosen"] in row["microseconds"]
            assert row["fastest"] == min(row["microseconds"], key=row["microseconds"].__getitem__)
            assert row["loss"] >= 1
            assert 0 < row["density"] < 1


def test_layers_of_a_model_without_thinned_matrices(speaking: Path, run: Any) -> None:
    result = run("bench", speaking, "--rounds", "1", "--layers")
    assert result.exit_code == 1
    assert "no matrix of it is thinned; `omnisparse extract --size`" in result.stderr


def test_a_latency_stands_in_the_card(speaking: Path, tmp_path: Path, run: Any) -> None:
    path = tmp_path / "small"
    assert run("extract", "--run", speaking, "--size", "40%", "--out", path).exit_code == 0
    for _ in range(2):  # the second takes the place of the first
        assert run("bench", path, "--rounds", "1", "--card").exit_code == 0
    card = (path / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if "ms for 40 ms of speech" in line]
    assert "one thread, sparse" in row
    assert run("inspect", path).exit_code == 0
    refused = run("bench", speaking, "--rounds", "1", "--card")
    assert refused.exit_code == 1
    assert "only an artifact of `omnisparse extract` has a card" in refused.stderr
