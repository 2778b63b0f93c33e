"""`export`: files of every format, and bad requests in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from small_exports import CONFIGS, make_source

from omnisparse.artifact import write_artifact
from omnisparse.sparsity.prunable import find_prunable

pytest.importorskip("onnxruntime")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pruned net of each kind, as `extract` leaves it."""
    folder = tmp_path_factory.mktemp("artifacts")
    places = {}
    for kind in ("stateless", "las"):
        source = make_source(kind, folder)
        model, tokens = source.model, source.tokenizer
        config = asdict(CONFIGS[kind])
        write_artifact(
            folder / kind,
            state=model.state_dict(),
            model={**config, "input_dim": model.input_dim, "vocab_size": tokens.vocab_size},
            tokenizer=tokens.to_bytes(),
            tokens_txt=tokens.tokens_txt(),
            features=source.extractor.to_dict(),
            dense_parameters=sum(p.numel() for p in model.parameters()),
            prunable=list(find_prunable(model)),
            source={},
        )
        places[kind] = folder / kind
    return places


def one_line(result: Any, code: int = 1) -> str:
    """The one line of a command that failed."""
    assert result.exit_code == code, (result.exit_code, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return str(lines[0].removeprefix("omnisparse: error: "))


def test_every_format(
    artifacts: dict[str, Path], run_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    parts = {"encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"}
    extra = {"bpe.vocab", "README.md"}
    for options, files in (
        (["onnx"], parts),
        (["onnx", "--packed", "--precision", "int8"], parts),
        (["onnx-sparse"], parts),
        (["sherpa", "--packed", "--chunk", "160"], parts | extra),
    ):
        out = tmp_path / "-".join(options)
        result = run_json("export", artifacts["stateless"], "--format", *options, "--out", out)
        assert result["max_abs_difference"] < 1e-5
        assert {Path(item["path"]).name for item in result["files"]} == files
        assert all(Path(item["path"]).stat().st_size == item["bytes"] for item in result["files"])
    result = run_json("export", artifacts["las"], "--format", "onnx", "--packed")
    assert Path(result["path"]) == artifacts["las"].with_name("las-onnx-packed")
    assert {Path(item["path"]).name for item in result["files"]} == parts - {"joiner.onnx"}


def test_bad_requests(artifacts: dict[str, Path], run: Run, tmp_path: Path) -> None:
    las, stateless, out = artifacts["las"], artifacts["stateless"], tmp_path / "out"
    line = one_line(run("export", las, "--format", "sherpa", "--out", out))
    assert line.startswith("las is a las, which sherpa-onnx has no place for; train a transducer")
    (tmp_path / "file").write_text("")
    taken = tmp_path / "file" / "out"
    line = one_line(run("export", stateless, "--format", "onnx", "--out", taken))
    assert line.startswith(f"{taken}: cannot be written (")
    line = one_line(run("export", tmp_path / "none", "--format", "onnx", "--out", out))
    assert "none: does not exist; a MODEL is an artifact or run directory" in line
    line = one_line(
        run("export", stateless, "--format", "sherpa", "--chunk", "7", "--out", out), code=2
    )
    assert line == "--chunk is 7 ms; this net reads multiples of 40 ms"
    for options in (["onnx-sparse", "--packed"], ["onnx", "--chunk", "160"], ["tflite"]):
        result = run("export", stateless, "--format", *options, "--out", out)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not out.exists()


def test_an_artifact_of_a_newer_format(
    artifacts: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    for file in artifacts["stateless"].iterdir():
        (newer / file.name).write_bytes(file.read_bytes())
    config = json.loads((newer / "config.json").read_text())
    config["omnisparse"]["format_version"] = 99
    (newer / "config.json").write_text(json.dumps(config))
    line = one_line(run("export", newer, "--format", "onnx", "--out", tmp_path / "out"))
    assert "artifact format version '99' is not known to omnisparse" in line
