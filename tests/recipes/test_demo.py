"""The demo from corpus to plot, on minutes of speech and a small net."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.evaluation.account import TrainingAccount

SMALL = (
    "training.max_steps=4",
    "training.warmup_steps=1",
    "data.vocab_size=40",
    "model.encoder_layers=2",
    "model.encoder_dim=96",
    "model.decoder_layers=1",
    "model.decoder_dim=96",
    "model.embedding_dim=16",
    "method.min_size=40%",
    "method.levels=[50%]",
)


def _demo(out: Path, *options: str) -> tuple[dict[str, Any], str]:
    arguments = ["demo", "--out", str(out), "--hours", "0.03", "--json", *options, *SMALL]
    result = CliRunner().invoke(verbs, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    out = tmp_path_factory.mktemp("demo")
    report, told = _demo(out, "corpus.synthetic.seed=3")
    return out, report, told


def test_rows_hold_the_contract(done: tuple[Path, dict[str, Any], str]) -> None:
    out, report, _ = done
    assert [row["size"] for row in report["rows"]] == ["dense", "50%", "40%"]
    for row, share in zip(report["rows"], (1.0, 0.5, 0.4), strict=True):
        assert set(row) == {
            "curve", "size", "parameters", "nonzero", "bytes", "wer", "wer_low", "wer_high",
            "seconds", *TrainingAccount().to_dict(),
        }  # fmt: skip
        assert row["optimizer_steps"] == 4
        assert (
            row["utterance_passes"] == report["training"]["supernet"]["metrics"]["utterance_passes"]
        )
        assert row["curve"] == "supernet"
        assert row["nonzero"] == round(share * row["parameters"])
        assert row["wer_low"] <= row["wer"] <= row["wer_high"]
    assert json.loads((out / "report.json").read_text()) == report


def test_files_are_there(done: tuple[Path, dict[str, Any], str]) -> None:
    out, report, _ = done
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    with (out / "pareto.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(report["rows"])
    assert len(list((out / "models").iterdir())) == len(report["rows"])


def test_people_are_told(done: tuple[Path, dict[str, Any], str]) -> None:
    out, report, told = done
    assert report["example"]["said"] in told
    for row in report["rows"]:
        assert f"{row['wer']:.2f}" in told
    assert str(out / "pareto.png") in told


@pytest.mark.parametrize(
    ("overrides", "legal"),
    [
        (("corpus.synthetic=null", "corpus.train=[mine.jsonl]"), "legal: keys of corpus.synthetic"),
        (("corpus.root=mine",), "legal: keys of corpus.synthetic"),
        (("corpus.test=[mine.jsonl]",), "legal: keys of corpus.synthetic"),
        (("method=dense",), "trains a supernet, not dense; legal: sandwich"),
        (("method={kind: gradual_pruning, size: 25%}",), "not gradual_pruning; legal: sandwich"),
    ],
)
def test_what_the_demo_cannot_take_is_one_line(
    tmp_path: Path, overrides: tuple[str, ...], legal: str
) -> None:
    result = CliRunner().invoke(verbs, ["demo", "--out", str(tmp_path / "demo"), *overrides])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith(legal)
    assert not (tmp_path / "demo").exists()


def test_running_again_keeps_what_is_finished(done: tuple[Path, dict[str, Any], str]) -> None:
    out, report, _ = done
    checkpoints = sorted((out / "supernet" / "checkpoints").rglob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    again, told = _demo(out, "--with-baseline", "corpus.synthetic.seed=3")
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    supernet = [row for row in again["rows"] if row["curve"] == "supernet"]
    baseline = [row for row in again["rows"] if row["curve"] == "baseline"]
    for old, new in zip(report["rows"], supernet, strict=True):
        assert {**old, "seconds": 0} == {**new, "seconds": 0}
    assert [row["nonzero"] for row in baseline] == [row["nonzero"] for row in supernet]
    assert "baseline WER %" in told


def test_the_baseline_costs_what_the_supernet_did(
    done: tuple[Path, dict[str, Any], str],
) -> None:
    report, _ = _demo(done[0], "--with-baseline", "corpus.synthetic.seed=3")
    costs = {
        curve: training["metrics"]["utterance_passes"]
        for curve, training in report["training"].items()
    }
    batch = costs["baseline"] / report["training"]["baseline"]["steps"]
    assert abs(costs["baseline"] - costs["supernet"]) <= batch
