"""Search in a trained run, from the command line to extracted models."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig
from omnisparse.pipeline.train import train
from omnisparse.runs.directory import load_model, read_description
from omnisparse.search.journal import key_of
from omnisparse.sparsity.supernet import Supernet

SIZES = "50%,70%"
EVALUATIONS = 24


def invoke(*arguments: Any) -> Any:
    result = CliRunner().invoke(verbs, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def invoke_json(*arguments: Any) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture
def run(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> Path:
    return train(tiny_config("transducer", max_steps=6), out=tmp_path / "run").run


def test_search_resumes_and_its_models_are_extracted(run: Path, speech: Path) -> None:
    manifest = speech / "train.jsonl"
    options = ("--run", run, "--manifest", manifest, "--utterances", 8, "--group", "encoder.*_l0")
    found = invoke_json("search", *options, "--sizes", SIZES, "--evaluations", EVALUATIONS)
    assert found["evaluations"] == found["evaluated_now"] == EVALUATIONS
    assert found["subset"]["utterances"] < found["subset"]["of"]
    front = found["front"]
    dense = json.loads((run / "model.json").read_text())
    parameters = invoke_json("inspect", run)["parameters"]
    assert dense["block"] == "1x1"
    assert [entry["size"] for entry in front] == SIZES.split(",")
    for entry in front:
        assert entry["nonzero"] == round(int(entry["size"][:-1]) / 100 * parameters)
        assert entry["score"] <= entry["uniform_score"] or entry["wer"] == entry["uniform_wer"]
        assert entry["wer"] <= entry["uniform_wer"]

    # The files say the same, and each spec makes the model that was measured.
    folder = run / "search"
    assert json.loads((folder / "front.json").read_text())["front"] == front
    rows = list(csv.DictReader((folder / "front.csv").read_text().splitlines()))
    assert [row["curve"] for row in rows] == ["searched", "searched", "uniform", "uniform"]
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert {row["optimizer_steps"] for row in rows} == {"6"}
    assert all(float(row["utterance_passes"]) > 0 for row in rows)
    spent = [int(row["search_evaluations"]) for row in rows]
    assert spent == [entry["evaluations"] for entry in front] + [0, 0]
    assert sum(spent) == EVALUATIONS
    for entry, row in zip(front, rows, strict=False):
        model = run / f"{entry['nonzero']}"
        taken = invoke_json(
            "extract", "--run", run, "--size", entry["size"], "--out", model,
            "--front", folder / "front.json",
        )  # fmt: skip
        assert taken["nonzero"] == entry["nonzero"]
        readme = sum((model / n).stat().st_size for n in ("README.md",) if (model / n).exists())
        assert int(row["bytes"]) in (taken["bytes"], taken["bytes"] - readme)
        again = invoke_json(
            "extract", "--run", run, "--out", run / f"spec-{entry['nonzero']}",
            "--spec", folder / "specs" / f"{entry['nonzero']}.json",
        )  # fmt: skip
        assert again["nonzero"] == entry["nonzero"]
        same = [invoke_json("inspect", path)["layers"] for path in (model, again["path"])]
        assert same[0] == same[1]
        measured = invoke_json("evaluate", model, "--manifest", manifest)
        assert measured["wer"] == pytest.approx(entry["wer"])
        assert measured["search_evaluations"] == entry["evaluations"]

    # Started again, nothing is measured again.
    same = invoke_json("search", *options, "--sizes", SIZES, "--evaluations", EVALUATIONS)
    assert same["evaluated_now"] == 0
    assert same["front"] == front
    wrong = invoke("extract", "--run", run, "--size", "60%", "--front", folder / "front.json")
    assert wrong.exit_code == 1
    assert "the front has no model of" in wrong.stderr
    assert "50%" in wrong.stderr


def test_a_later_search_adds_its_sizes_and_a_front_is_of_its_weights(
    run: Path, speech: Path
) -> None:
    options = ("--manifest", speech / "dev.jsonl", "--evaluations", 8, "--finalists", 1)
    path = run / "search" / "front.json"
    (first,) = invoke_json("search", "--run", run, "--sizes", "70%", *options)["front"]
    (second,) = invoke_json("search", "--run", run, "--sizes", "50%", *options)["front"]
    document = json.loads(path.read_text())
    assert [entry["spec"] for entry in document["front"]] == [second["spec"], first["spec"]]
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [row["size"] for row in rows] == ["50%", "70%"] * 2
    extract = ("extract", "--run", run, "--size", "70%", "--front")
    assert invoke_json(*extract, path)["nonzero"] == first["nonzero"]
    # Of the same size the bill is that of both searches, and so is the time.
    (third,) = invoke_json("search", "--run", run, "--sizes", "50%", "--seed", 1, *options)["front"]
    later = json.loads(path.read_text())
    assert second["evaluations"] < third["evaluations"] <= second["evaluations"] + 8
    assert later["seconds"] > document["seconds"] > 0

    for *illegal, message in (
        ("--size", "70%", "--front", path, "--scope", "lamp", "scope lamp is not legal"),
        ("--size", "70%", "--front", path, "--block", "8x1", "block, norm and floor are not legal"),
        ("--spec", path.parent / "specs" / f"{first['nonzero']}.json", "--scope", "lamp",
         "scope lamp is not legal with a spec"),
    ):  # fmt: skip
        refused = invoke("extract", "--run", run, *illegal, "--out", run / "refused")
        assert (refused.exit_code, message in refused.stderr) == (2, True)
        assert not (run / "refused").exists()

    other = path.with_name("other.json")
    other.write_text(path.read_text().replace(document["identity"], "7-0badcafe"))
    wrong = invoke(*extract, other)
    assert wrong.exit_code == 1
    # A search by another objective has a front of its own; this one is still there.
    anew = ("search", "--run", run, "--sizes", "60%", "--objective", "wer", *options)
    told = invoke(*anew).stderr
    (kept,) = path.parent.glob("front-*.json")
    assert f"it is {kept} now" in told
    assert [entry["size"] for entry in json.loads(kept.read_text())["front"]] == ["50%", "70%"]
    assert [entry["size"] for entry in json.loads(path.read_text())["front"]] == ["60%"]
    assert "searched in other weights (7-0badcafe) than those of run (6-" in wrong.stderr


def test_a_search_begins_with_uniform_and_lamp_and_measures_how_its_subset_ranks(
    run: Path, speech: Path
) -> None:
    options = ("--manifest", speech / "train.jsonl", "--utterances", 8, "--evaluations", 10)
    found = invoke_json("search", "--run", run, "--sizes", SIZES, *options)
    (journal,) = (run / "search").glob("evaluations-*.jsonl")
    asked = [json.loads(line)["question"] for line in journal.read_text().splitlines()[1:]]
    supernet = Supernet(load_model(run).model, prunable=read_description(run).prunable)
    for size in SIZES.split(","):
        for scope in ("layer", "lamp"):
            assert f"{key_of(supernet.spec_for(size, scope=scope))} all" in asked[:10]
    stored = json.loads((run / "search" / "front.json").read_text())["subset"]
    assert stored == found["subset"]
    assert all(-1 <= stored[name] <= 1 for name in ("spearman", "kendall", "spearman_within_size"))


def test_illegal_searches_are_one_line(run: Path, speech: Path) -> None:
    failed, bad_usage = 1, 2
    for code, message, *arguments in (
        (failed, "'1%' is out of range", "--sizes", "1%"),
        (bad_usage, "two of them are the same size", "--sizes", "50%,50%"),
        (bad_usage, "is in bytes", "--sizes", "20MB"),
        (failed, "is used for none of", "--sizes", "50%", "--group", "decoder"),
        (bad_usage, "spread is 0", "--sizes", "50%", "--spread", "0"),
        (bad_usage, "spread is 1e+308", "--sizes", "50%", "--spread", "1e308"),
        (bad_usage, "seed is -1", "--sizes", "50%", "--seed", "-1"),
        (bad_usage, "evaluations is 3; at least", "--sizes", "50%,60%,70%", "--evaluations", "3"),
        (failed, "nothing.jsonl", "--sizes", "50%", "--manifest", "nothing.jsonl"),
    ):
        defaults = ("search", "--run", run, "--manifest", speech / "dev.jsonl")
        result = invoke(*defaults, *arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr
        assert result.stderr.count("omnisparse: error: ") == 1
    for sizes, message in ((",", "sizes names no size"), ("half", "size 'half' is not understood")):
        result = invoke("search", "--run", run, "--sizes", sizes)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert not (run / "search").exists()


def test_blocks_of_the_training_are_those_of_extraction_and_search(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config("las", max_steps=6)
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, block="8x1"))
    run = train(config, out=tmp_path / "run").run
    taken = invoke_json("extract", "--run", run, "--size", "60%")
    finer = invoke_json(
        "extract", "--run", run, "--size", "60%", "--block", "1x1", "--out", tmp_path / "finer"
    )
    assert finer["nonzero"] - 8 < taken["nonzero"] <= finer["nonzero"]
    options = ("--evaluations", 8, "--finalists", 1)
    search = ("search", "--run", run, *options)  # on the dev split of the run
    found = invoke_json(*search, "--sizes", "60%")
    assert [entry["nonzero"] for entry in found["front"]] == [taken["nonzero"]]

    # A size between two numbers of blocks is asked for as it was searched for.
    (entry,) = invoke_json(*search, "--sizes", "61%")["front"]
    assert entry["requested"] - 8 < entry["nonzero"] < entry["requested"]
    specs = {path.stem for path in (run / "search/specs").iterdir()}
    assert {str(one["requested"]) for one in (*found["front"], entry)} == specs
    front = run / "search" / "front.json"
    taken = invoke_json("extract", "--run", run, "--size", "61%", "--front", front)
    assert taken["nonzero"] == entry["nonzero"]
    sizes = ",".join(str(entry["nonzero"] + more) for more in (1, 2))
    same = invoke(*search, "--sizes", sizes)
    assert same.exit_code == 2
    assert "two of them are the same size" in same.stderr


def test_blocks_in_a_part_of_the_net(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny_config("las", max_steps=6)
    part = {"block": "8x1", "block_matrices": ("^encoder",)}
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, **part))
    run = train(config, out=tmp_path / "run").run
    description = read_description(run)
    assert description.single == [n for n in description.prunable if n.startswith("decoder")]

    taken = invoke_json("extract", "--run", run, "--size", "60%")
    path = Path(taken["path"])
    assert path.name == "60pct"
    found = invoke_json("inspect", path)
    assert (found["problems"], found["block"], found["nonzero"]) == ([], [8, 1], taken["nonzero"])
    packings = {line["name"]: line["packing"] for line in found["layers"]}
    assert "8x1, single weights in" in (path / "README.md").read_text()
    state = load_model(path).model.state_dict()
    for name in description.prunable:
        kept = state[name].ne(0).reshape(-1, 8, state[name].shape[1])
        in_blocks = bool((kept.all(1) | ~kept.any(1)).all())
        assert in_blocks == (name not in description.single), name
        assert packings[name] == ("block" if in_blocks else "bitmask")
    trained = load_model(run).model
    supernet = Supernet(
        trained, prunable=description.prunable, block=(8, 1), single=description.single
    )
    expected = supernet.extract(supernet.spec_for("60%"))
    assert supernet.nonzero(supernet.spec_for("60%")) == taken["nonzero"]
    assert all(torch.equal(state[name], expected[name]) for name in description.prunable)

    options = ("--evaluations", 8, "--finalists", 1)
    (entry,) = invoke_json("search", "--run", run, "--sizes", "60%", *options)["front"]
    assert entry["nonzero"] == taken["nonzero"]
    everywhere = invoke_json("extract", "--run", run, "--size", "60%", "--block", "8x1")
    assert Path(everywhere["path"]).name == "60pct-8x1"  # another net than the trained one
    assert {line["packing"] for line in everywhere["layers"]} == {"dense", "block"}
    refused = invoke("extract", "--run", run, "--nested")
    assert "trained with block 8x1" in refused.stderr


def test_a_search_at_one_size_that_is_the_dense_net_finds_it(run: Path, speech: Path) -> None:
    options = ("--manifest", speech / "dev.jsonl", "--evaluations", 4, "--finalists", 1)
    (entry,) = invoke_json("search", "--run", run, "--sizes", "100%", *options)["front"]
    assert set(entry["spec"]["sparsity"].values()) == {0.0}
    assert entry["wer"] == entry["uniform_wer"]


def test_sizes_may_be_times_on_this_machine(run: Path, speech: Path) -> None:
    options = ("--run", run, "--manifest", speech / "dev.jsonl", "--evaluations", 12)
    impossible = invoke("search", *options, "--sizes", "0.0000001ms")
    assert impossible.exit_code == 2
    line = impossible.stderr.strip().splitlines()[-1]
    assert "the fastest takes" in line
    fastest = float(line.rsplit("takes", 1)[1].split()[0])
    mixed = invoke("search", *options, "--sizes", "50%,5ms")
    assert mixed.exit_code == 2
    assert "either all or none may be times" in mixed.stderr

    # Every model fits into a second: the search finds the dense net, and says how long it took.
    plain = invoke_json("search", *options, "--sizes", "50%")["front"][0]
    found = invoke_json("search", *options, "--sizes", "1s")
    (entry,) = found["front"]
    assert entry["nonzero"] == invoke_json("inspect", run)["parameters"]
    assert fastest / 5 < entry["latency_ms"] < 1000
    again = invoke_json("search", *options, "--sizes", "1s")
    assert again["front"] == [entry]
    assert again["evaluated_now"] == 0
    document = json.loads((run / "search" / "front.json").read_text())
    assert [one["size"] for one in document["front"]] == ["50%", "1s"]
    assert document["front"][0]["spec"] == plain["spec"]
    assert (run / "search" / "specs" / "1s.json").exists()
    extract = ("extract", "--run", run, "--front", run / "search", "--size")
    assert invoke_json(*extract, "2s")["nonzero"] == entry["nonzero"]
    assert invoke_json(*extract, "50%")["nonzero"] == plain["nonzero"]
    refused = invoke(*extract, "0.0000001ms")
    assert refused.exit_code == 1
    assert "it has times of 1s" in refused.stderr
