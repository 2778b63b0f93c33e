"""What was written before the package had rooms (commit f1feb7c) is still read, to the byte.

``tests/fixtures/f1feb7c`` holds a training of a LAS of 43,800 parameters that was killed behind its
checkpoint at step 5 of 10, two artifacts and a nested file made from it, and in ``expected.json``
what that commit counted and computed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import omnisparse
from omnisparse.cli.main import verbs
from omnisparse.runs.record import read_record

OLD = Path(__file__).parents[1] / "fixtures" / "f1feb7c"
EXPECTED: dict[str, dict[str, Any]] = json.loads((OLD / "expected.json").read_text())


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(verbs, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_old_files_are_counted_as_then(name: str) -> None:
    counted = run("inspect", OLD / name)
    assert not counted.get("problems")
    keys = ("nonzero", "parameters", "bytes")
    assert {key: counted[key] for key in keys} == {key: EXPECTED[name][key] for key in keys}


@pytest.mark.parametrize("name", ["run", "artifact", "artifact_int8_8x1"])
def test_old_nets_compute_as_then(name: str) -> None:
    model = omnisparse.load_model(OLD / name)
    net = getattr(model, "model", model).eval()
    features = torch.linspace(-2, 2, 30 * 240).reshape(1, 30, 240).sin()
    with torch.no_grad():
        output = net(features, torch.tensor([30]), torch.tensor([[5, 6, 7]]), torch.tensor([3]))
    assert float(output.label_loss_sum) == pytest.approx(EXPECTED[name]["loss"], rel=1e-5)


def test_an_old_run_gives_the_old_artifact(old_run: Path, tmp_path: Path) -> None:
    run("extract", "--run", old_run, "--size", "60%", "--out", tmp_path / "small")
    # Of the configuration only the commit that wrote it may differ.
    for name in ("model.safetensors", "tokenizer.model", "tokens.txt"):
        written = (tmp_path / "small" / name).read_bytes()
        assert written == (OLD / "artifact" / name).read_bytes(), name


def test_an_old_nested_file_gives_sizes(tmp_path: Path) -> None:
    result = run(
        "extract", "--from", OLD / "net.omni", "--size", "60%", "--out", tmp_path / "small"
    )
    assert result["nonzero"] == EXPECTED["artifact"]["nonzero"]


def test_an_old_run_goes_on(
    old_run: Path, speech_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpora").symlink_to(speech_root)
    result = run("train", old_run / "config.yaml", "--out", old_run)
    assert result["steps"] == 10
    lines = (old_run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss/dense" in line] == list(
        range(1, 11)
    )
    assert read_record(old_run).account.optimizer_steps == 10
