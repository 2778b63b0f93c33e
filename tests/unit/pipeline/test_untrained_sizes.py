"""Sizes that nobody trained are told by `extract`, in the card, and in the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omnisparse.artifact import update_card
from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig, override_config
from omnisparse.pipeline.extract import extract
from omnisparse.pipeline.train import train
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_record

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, speech_root: Path
) -> Callable[[RunConfig], Path]:
    """Train a configuration for a step, once."""
    folder = tmp_path_factory.mktemp("runs")

    def make(config: RunConfig) -> Path:
        return train(config, out=folder / config.name).run

    return make


def invoke(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(verbs, ["extract", *arguments])
    assert result.exit_code == code, result.stderr
    return result


@pytest.mark.parametrize(
    ("method", "sizes", "smallest"),
    [
        ("{kind: sandwich, min_size: 40%}", {"100%": False, "40%": False, "39%": True}, 0.4),
        ("{kind: gradual_pruning, size: 60%}", {"60%": False, "50%": True}, 0.6),
        ("{kind: dense}", {"100%": False, "90%": True}, 1.0),
    ],
)
def test_a_size_below_the_smallest_that_was_trained_is_told(
    tiny_config: Make,
    trained: Callable[[RunConfig], Path],
    tmp_path: Path,
    method: str,
    sizes: dict[str, bool],
    smallest: float,
) -> None:
    config = override_config(tiny_config(max_steps=1), [f"method={method}", "name=" + method[7:12]])
    run = trained(config)
    for size, warns in sizes.items():
        out, told = tmp_path / size, list[str]()
        result = extract(run, size=size, out=out, warn=told.append)
        assert result["warnings"] == told
        source = json.loads((out / "config.json").read_text())["omnisparse"]["source"]
        assert source["smallest_trained"] == round(smallest * result["parameters"])
        line = (
            f"{result['nonzero']:,} non-zero parameters are fewer than the smallest size that was "
            f"trained, {source['smallest_trained']:,}: measure its error rate, which may be many "
            "times higher"
        )
        assert (line in told) is warns
        assert (f"> **Warning:** {line}." in (out / "README.md").read_text()) is warns
        update_card(out, "test", {"wer": 80.0, "wer_low": 70.0, "wer_high": 90.0, "utterances": 50})
        assert (f"> **Warning:** {line}." in (out / "README.md").read_text()) is warns


def test_the_warning_is_in_the_json_and_on_the_screen_also_of_nested_files(
    tiny_config: Make, trained: Callable[[RunConfig], Path], tmp_path: Path
) -> None:
    run = trained(override_config(tiny_config(max_steps=1), ["name=nested"]))
    small = invoke("--run", str(run), "--size", "30%", "--out", str(tmp_path / "small"), "--json")
    (line,) = json.loads(small.stdout)["warnings"]
    assert "smallest size that was trained" in line
    assert line in " ".join(small.stderr.split())
    whole = invoke("--run", str(run), "--size", "80%", "--out", str(tmp_path / "whole"), "--json")
    assert json.loads(whole.stdout)["warnings"] == []

    file = str(tmp_path / "all.nested")
    nested = invoke("--run", str(run), "--nested", "--out", file, "--json")
    assert "were never trained" in json.loads(nested.stdout)["warnings"][0]
    for size, count in (("30%", 1), ("80%", 0)):
        out = str(tmp_path / f"from{count}")
        again = invoke("--from", file, "--size", size, "--out", out, "--json")
        assert len(json.loads(again.stdout)["warnings"]) == count


def test_a_run_that_was_stopped_says_so_and_an_old_one_says_nothing(
    tiny_config: Make, tmp_path: Path
) -> None:
    run = train(tiny_config(max_steps=1), out=tmp_path / "run").run
    state = next((run / "checkpoints").iterdir()) / "state.json"
    document = json.loads(state.read_text())
    del document["crc32"]  # it is changed by hand
    document["state"]["record"]["max_steps"] = 9
    state.write_text(json.dumps(document))
    assert read_record(run).max_steps == 9
    result = extract(run, size="80%")
    assert result["warnings"] == [
        "the training stands at step 1 of 9: not all sizes are trained to their end"
    ]
    del document["state"]["record"]["max_steps"]
    state.write_text(json.dumps(document))
    (run / "config.yaml").unlink()
    assert extract(run, size="30%")["warnings"] == []


def test_a_front_gives_sizes_in_bytes_and_a_nested_file_says_what_to_do(
    tiny_config: Make, tmp_path: Path
) -> None:
    run = train(tiny_config(max_steps=1), out=tmp_path / "run").run
    names = runs.read_description(run).prunable
    entry = {
        "requested": 1, "wer_low": 0.0, "wer_high": 99.0, "score": 1.0, "uniform_wer": 50.0,
        "uniform_score": 1.0, "evaluations": 3, "dominated": False,
    }  # fmt: skip
    entries, sizes = [], {}
    for sparsity, wer in ((0.75, 30.0), (0.5, 20.0), (0.25, 25.0)):
        spec = {"sparsity": dict.fromkeys(names, sparsity)}
        file = tmp_path / f"{sparsity}.json"
        file.write_text(json.dumps(spec))
        made = extract(run, spec=file, out=tmp_path / f"spec{sparsity}")
        sizes[sparsity] = made["bytes"]
        entries.append(
            {**entry, "size": f"{sparsity}", "nonzero": made["nonzero"], "wer": wer, "spec": spec}
        )
    folder = tmp_path / "search"
    folder.mkdir()
    front = {"format": 2, "identity": read_record(run).training.identity, "journal": "j"}
    (folder / "front.json").write_text(json.dumps({**front, "front": entries}))

    def nonzero_of(size: str) -> int:
        arguments = ("--run", str(run), "--front", str(folder), "--size", size, "--json")
        return int(json.loads(invoke(*arguments).stdout)["nonzero"])

    slack = 200  # the evaluations of the search are in what an artifact says of its source
    assert nonzero_of(f"{sizes[0.75] + slack}B") == entries[0]["nonzero"]
    assert nonzero_of(f"{sizes[0.5] + slack}B") == entries[1]["nonzero"]
    assert nonzero_of("10MB") == entries[1]["nonzero"]  # a larger one fits, this one is better
    few = invoke("--run", str(run), "--front", str(folder), "--size", "1KB", code=1)
    assert "no model of the front has at most 1000 bytes; it has 0.75 (" in few.stderr
    both = invoke("--run", str(run), "--front", str(folder), "--nested", code=2)
    assert "--front FILE --size S without --nested" in " ".join(both.stderr.split())
