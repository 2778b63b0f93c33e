"""The command line from nothing to words, on a corpus of minutes and a net of thousands.

In this process for speed, with one subprocess to see the installed way of running it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import omnisparse
from omnisparse.cli.main import verbs
from omnisparse.cli.train import run_recipe
from omnisparse.evaluation.account import TrainingAccount

CONFIG = """
name: tiny
corpus:
  synthetic: null
  base: {corpus}
  train: [train.jsonl]
  dev: [dev.jsonl]
  test: [test.jsonl]
  root: {root}
data:
  vocab_size: 40
  batch_seconds: 40
model:
  kind: {kind}
  encoder_layers: 2
  encoder_dim: 96
  embedding_dim: 16
  {sizes}
method:
  kind: sandwich
  min_size: 40%
  levels: [50%]
  warmup_fraction: 0.25
training:
  max_steps: 4
  warmup_steps: 1
  log_every: 2
"""
SIZES = {
    "las": "{decoder_layers: 1, decoder_dim: 96}",
    "transducer": "{predictor_layers: 1, predictor_dim: 32, joiner_dim: 48}",
}


ACCOUNT = {field.name for field in fields(TrainingAccount)}


@dataclass
class World:
    """What the tests of this file share, made once."""

    root: Path
    corpus: Path
    run: Path
    artifact: Path
    statistics: dict[str, Any]
    trained: dict[str, Any]
    extracted: dict[str, Any]

    @property
    def wav(self) -> Path:
        line = (self.corpus / "test.jsonl").read_text().splitlines()[0]
        return self.corpus / json.loads(line)["audio_filepath"]


def run(*arguments: Any) -> Any:
    """Runs the command line; a traceback is a failure of the test whatever was expected."""
    result = CliRunner().invoke(verbs, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.stderr
    return result


def run_json(*arguments: Any) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def fails(*arguments: Any, code: int = 1) -> str:
    """The one line of a command that fails."""
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.stderr)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("omnisparse: error: ")]
    assert len(lines) == 1, result.stderr
    return str(lines[0].removeprefix("omnisparse: error: "))


def _write_config(root: Path, corpus: Path, kind: str) -> Path:
    sizes = "\n  ".join(part.strip() for part in SIZES[kind].strip("{}").split(","))
    path = root / f"{kind}.yaml"
    path.write_text(CONFIG.format(corpus=corpus, root=root / "cache", kind=kind, sizes=sizes))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    corpus = root / "corpus"
    statistics = run_json(
        "prepare", "synthetic", "--out", corpus, "--hours", 0.03, "--preset", "assistant-easy"
    )
    config = _write_config(root, corpus, "las")
    trained = run_json("train", config, "--out", root / "run")
    extracted = run_json("extract", "--size", "50%", "--run", root / "run", "--out", root / "model")
    return World(root, corpus, root / "run", root / "model", statistics, trained, extracted)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_corpus_has_three_splits(world: World) -> None:
    assert set(world.statistics["splits"]) == {"train", "dev", "test"}
    for name, split in world.statistics["splits"].items():
        assert set(split) >= {"utterances", "hours", "speakers"}
        lines = (world.corpus / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == split["utterances"] > 0


def test_import_keeps_the_corpus(world: World, tmp_path: Path) -> None:
    result = run_json("prepare", "import", world.corpus, "--out", tmp_path / "cuts")
    assert result["skipped"] == 0
    for name, split in result["splits"].items():
        assert split["utterances"] == world.statistics["splits"][name]["utterances"]


def test_training_leaves_a_run(world: World) -> None:
    assert world.trained["steps"] == 4
    assert Path(world.trained["run"]) == world.run
    assert {"config.yaml", "metrics.jsonl", "tokenizer.model", "tokens.txt"} <= _names(world.run)


def test_a_finished_run_is_kept(world: World) -> None:
    again = run_json("train", world.root / "las.yaml", "--out", world.run)
    assert again["steps"] == 4
    assert again["metrics"]["utterance_passes"] == world.trained["metrics"]["utterance_passes"]


def test_no_steps_write_the_untrained_net(world: World, tmp_path: Path) -> None:
    result = run_json(
        "train", world.root / "las.yaml", "--out", tmp_path / "r", "training.max_steps=0"
    )
    assert result["steps"] == 0
    assert run_json("inspect", tmp_path / "r")["kind"] == "run"


def test_recipes_train_the_same_way(world: World, tmp_path: Path) -> None:
    arguments = ["--config", str(world.root / "las.yaml"), "--out", str(tmp_path / "r")]
    assert run_recipe(arguments, defaults=("method=dense", "training.max_steps=1")) == 0
    assert run_json("inspect", tmp_path / "r")["method"] == "dense"
    assert run_recipe([*arguments, "no.such_key=1"]) == 2


def test_extraction_says_what_inspection_finds(world: World) -> None:
    found = run_json("inspect", world.artifact)
    assert set(world.extracted) >= {
        "path", "parameters", "nonzero", "sparsity", "bytes", "seconds",
    }  # fmt: skip
    for key in ("parameters", "nonzero", "bytes"):
        assert found[key] == world.extracted[key]
    assert found["sparsity"] == pytest.approx(world.extracted["sparsity"])
    assert found["kind"] == "artifact"
    assert found["nonzero"] == round(found["parameters"] / 2)
    assert sum(layer["nonzero"] for layer in found["layers"]) == found["nonzero"]


@pytest.mark.parametrize(
    "options",
    [
        ("--sparsity", "0.8"),
        ("--size", "60%", "--precision", "int8"),
        ("--size", "60%", "--precision", "fp16", "--block", "8x1"),
        ("--size", "60%", "--format", "dense"),
    ],
)
def test_other_extractions_recognise(
    world: World, tmp_path: Path, options: tuple[str, ...]
) -> None:
    run_json("extract", "--run", world.run, "--out", tmp_path / "m", *options)
    assert run("transcribe", tmp_path / "m", world.wav).exit_code == 0


def test_bytes_are_a_limit(world: World, tmp_path: Path) -> None:
    limit = world.extracted["bytes"]
    result = run_json("extract", "--size", f"{limit}B", "--run", world.run, "--out", tmp_path / "m")
    written = sum(p.stat().st_size for p in (tmp_path / "m").iterdir() if p.name != "README.md")
    assert written == result["bytes"] <= limit
    assert result["bytes"] > 0.99 * limit


def test_evaluation_agrees_with_transcription(world: World) -> None:
    result = run_json("evaluate", world.artifact, "--manifest", world.corpus / "test.jsonl")
    assert set(result) == {
        "wer", "wer_low", "wer_high", "interval", "speakers", "words", "substitutions", "deletions",
        "insertions", "cer", "cer_low", "cer_high", "characters", "utterances", "audio_seconds",
        "seconds", "rtf", "confusions", "by_speaker", "by_length", "warnings", "parameters",
        "nonzero", "bytes", "skipped", "left_out", *ACCOUNT,
    }  # fmt: skip
    for key in ("parameters", "nonzero", "bytes"):
        assert result[key] == world.extracted[key]
    for key in ACCOUNT:  # what the artifact says is what the run's checkpoint recorded
        assert result[key] == world.trained["cost"][key]
    assert result["utterance_passes"] == world.trained["metrics"]["utterance_passes"] > 0
    assert (result["seed"], result["optimizer_steps"]) == (0, 4)
    items = [json.loads(line) for line in (world.corpus / "test.jsonl").read_text().splitlines()]
    assert result["utterances"] == len(items)
    assert result["words"] == sum(len(item["text"].split()) for item in items)
    assert result["audio_seconds"] == pytest.approx(sum(item["duration"] for item in items))
    errors = result["substitutions"] + result["deletions"] + result["insertions"]
    assert result["wer"] == pytest.approx(100 * errors / result["words"])


def test_the_card_takes_the_rate(world: World, tmp_path: Path) -> None:
    manifest = world.corpus / "test.jsonl"
    shutil.copytree(world.artifact, tmp_path / "m")
    result = run_json("evaluate", tmp_path / "m", "--manifest", manifest, "--card")
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"| WER corpus-test | {result['wer']:.2f} (95 % interval " in card
    assert f"| non-zero parameters | {world.extracted['nonzero']:,} |" in card
    for path in world.artifact.iterdir():
        if path.name != "README.md":
            assert (tmp_path / "m" / path.name).read_bytes() == path.read_bytes()
    assert "no model card" in fails("evaluate", world.run, "--manifest", manifest, "--card")


def test_two_models_are_compared_on_the_same_utterances(world: World) -> None:
    manifest = ("--manifest", world.corpus / "test.jsonl")
    alone = run_json("evaluate", world.run, *manifest)
    found = run("evaluate", world.artifact, *manifest, "--against", world.run, "--json")
    result = json.loads(found.stdout)
    test = result["against"]
    assert (test["model"], test["wer"]) == (str(world.run), alone["wer"])
    assert test["difference"] == pytest.approx(result["wer"] - alone["wer"])
    assert test["low"] <= test["difference"] <= test["high"]
    assert 0 < test["p_value"] <= 1
    same = run_json("evaluate", world.run, *manifest, "--against", world.run)["against"]
    # Where no utterance tells them apart there is no interval.
    found = [same[key] for key in ("difference", "low", "high", "p_value")]
    assert found == [0, None, None, 1]


def test_a_run_is_a_model_too(world: World) -> None:
    result = run("transcribe", world.run, world.wav)
    assert result.exit_code == 0
    assert "real-time factor" in result.stderr


def test_transcription_names_bad_files_and_goes_on(world: World, tmp_path: Path) -> None:
    corrupt, silent = tmp_path / "corrupt.wav", tmp_path / "empty.wav"
    corrupt.write_bytes(world.wav.read_bytes()[:30])
    soundfile.write(silent, np.zeros(0), 16000)
    files = [corrupt, world.wav, tmp_path / "missing.wav", silent]
    result = run("transcribe", world.artifact, *files, "--json")
    assert result.exit_code == 1
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["file"] == str(world.wav)
    assert set(entry) == {
        "file", "text", "audio_seconds", "seconds", "rtf", "pieces", "words", "warnings",
    }  # fmt: skip
    errors = [line for line in result.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 3
    for bad, line in zip((corrupt, files[2], silent), errors, strict=True):
        assert str(bad) in line


def test_public_api(world: World) -> None:
    recognizer = omnisparse.Recognizer.from_path(world.artifact)
    text = recognizer.transcribe(world.wav).text
    result = run("transcribe", world.artifact, world.wav)
    assert result.stdout == text + "\n"
    loaded = omnisparse.load_model(world.artifact)
    dense = omnisparse.load_model(world.run)
    kept = [tensor.count_nonzero() for tensor in loaded.model.state_dict().values()]
    assert sum(map(int, kept)) < sum(t.numel() for t in dense.model.state_dict().values())


@pytest.mark.parametrize("encoder", ["lstm", "emformer", "conformer"])
def test_transducer_streams_what_it_says_offline(
    world: World, tmp_path: Path, encoder: str
) -> None:
    config = _write_config(world.root, world.corpus, "transducer")
    overrides = ["training.max_steps=2", f"model.encoder={encoder}"]
    overrides += ["model.right_context=2"] if encoder == "emformer" else []
    run_json("train", config, "--out", tmp_path / "r", *overrides)
    run_json("extract", "--size", "60%", "--run", tmp_path / "r", "--out", tmp_path / "m")
    manifest = world.corpus / "test.jsonl"
    for model, beam in (("r", 1), ("m", 2)):
        common = ("evaluate", tmp_path / model, "--manifest", manifest, "--beam", beam)
        offline, streamed = run_json(*common), run_json(*common, "--streaming")
        for key in ("wer", "substitutions", "deletions", "insertions"):
            assert streamed[key] == offline[key]
    offline = run_json("transcribe", tmp_path / "m", world.wav)
    streamed = run_json("transcribe", tmp_path / "m", world.wav, "--streaming")
    assert streamed["results"][0]["text"] == offline["results"][0]["text"]


@pytest.mark.parametrize(
    ("size", "named"), [("1%", "legal"), ("101%", "legal"), ("900M", "legal"), ("1B", "legal")]
)
def test_sizes_out_of_range_name_the_legal_range(
    world: World, tmp_path: Path, size: str, named: str
) -> None:
    line = fails("extract", "--size", size, "--run", world.run, "--out", tmp_path / "m")
    assert named in line
    assert not list(tmp_path.iterdir())


def test_bad_requests_write_nothing(world: World, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert "legal" in fails("extract", "--sparsity", "1.5", "--run", world.run, "--out", out)
    assert "nowhere" in fails("extract", "--size", "50%", "--run", "nowhere", "--out", out)
    spec = tmp_path / "spec.json"
    spec.write_text("{not json")
    fails("extract", "--spec", spec, "--run", world.run, "--out", out)
    assert _names(tmp_path) == {"spec.json"}


def test_bad_manifests(world: World, tmp_path: Path) -> None:
    empty, unreadable = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl"
    empty.write_text("")
    unreadable.write_text('{"audio_filepath": "no')
    for manifest in (tmp_path / "missing.jsonl", empty, unreadable):
        line = fails("evaluate", world.artifact, "--manifest", manifest)
        assert manifest.name in line or "no utterance" in line


def test_bad_models(world: World, tmp_path: Path) -> None:
    assert "missing" in fails("transcribe", tmp_path / "missing", world.wav)
    (tmp_path / "folder").mkdir()
    fails("inspect", tmp_path / "folder")
    fails("inspect", world.wav)


def test_streaming_a_las_says_why_not(world: World) -> None:
    assert "cannot stream" in fails("transcribe", world.artifact, world.wav, "--streaming")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model"])
def test_a_flipped_byte_is_found(world: World, tmp_path: Path, name: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(world.artifact, broken)
    content = bytearray((broken / name).read_bytes())
    content[len(content) // 2] ^= 0x10
    (broken / name).write_bytes(bytes(content))
    line = fails("transcribe", broken, world.wav)
    assert str(broken) in line
    result = run("inspect", broken)
    assert result.exit_code == 1


def test_a_checkpoint_that_is_none(world: World, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(world.run, broken, symlinks=True)
    for path in (broken / "checkpoints").rglob("*.safetensors"):
        path.write_bytes(b"this is no checkpoint")
    before = _names(tmp_path)
    fails("extract", "--size", "50%", "--run", broken, "--out", tmp_path / "m")
    assert "run" in fails("inspect", broken)
    assert _names(tmp_path) == before


def test_bad_configs(world: World, tmp_path: Path) -> None:
    config = world.root / "las.yaml"
    out = tmp_path / "r"
    assert "nowhere.yaml" in fails("train", "nowhere.yaml", "--out", out, code=2)
    assert "no_such" in fails("train", config, "--out", out, "training.no_such=1", code=2)
    assert "max_steps" in fails("train", config, "--out", out, "training.max_steps=x", code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(world: World, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    fails("extract", "--size", "50%", "--run", world.run, "--out", tmp_path / "m")


def test_installed_command(world: World) -> None:
    """One line on stderr and exit 1 in a real process; warnings of libraries aside."""
    done = subprocess.run(
        [sys.executable, "-m", "omnisparse.cli", "extract", "--size", "1%"],
        capture_output=True,
        text=True,
        cwd=world.root / "corpus",
        env={**os.environ, "PYTHONPATH": str(Path(omnisparse.__file__).parents[1])},
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "runs/latest" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_saved_net_is_no_model(world: World, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    assert "is not a directory" in fails("inspect", tmp_path / "model.pt")


@pytest.fixture(scope="module")
def nested(world: World) -> tuple[Path, dict[str, Any]]:
    path = world.root / "all.nested"
    return path, run_json("extract", "--nested", "--run", world.run, "--out", path)


def test_nested_file_gives_the_artifacts_of_the_run(
    world: World, nested: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, written = nested
    assert written["bytes"] == path.stat().st_size == written["prefixes"][-1]["bytes"]
    found = run_json("extract", "--from", path, "--size", "50%", "--out", tmp_path / "m")
    for key in ("parameters", "nonzero", "sparsity"):
        assert found[key] == world.extracted[key]
    expected = omnisparse.load_model(world.artifact).model.state_dict()
    for name, tensor in omnisparse.load_model(tmp_path / "m").model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_prefix_grows(world: World, nested: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    whole, written = nested
    prefix = tmp_path / "small.nested"
    first = run_json("grow", prefix, "--from", whole, "--size", "40%")
    assert prefix.stat().st_size == first["bytes"] < written["bytes"]
    grown = run_json("grow", prefix, "--from", whole, "--size", "100%")
    assert grown["bytes"] == first["bytes"] + grown["added"] == written["bytes"]
    assert prefix.read_bytes() == whole.read_bytes()
    assert grown["nonzero"] == written["parameters"]


def test_bad_nested_requests(
    world: World, nested: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    whole, _ = nested
    out = tmp_path / "m"
    assert "legal" in fails("extract", "--from", whole, "--size", "1%", "--out", out)
    assert "legal" in fails("grow", tmp_path / "new", "--from", whole, "--size", "1%")
    fails("extract", "--from", world.wav, "--size", "50%", "--out", out)
    fails("extract", "--from", tmp_path / "none", "--size", "50%", "--out", out)
    assert not list(tmp_path.iterdir())
    broken = tmp_path / "broken"
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(bytes(content))
    fails("extract", "--from", broken, "--size", "100%", "--out", out)
    assert not out.exists()
    for usage in (
        ("--nested", "--size", "50%"),
        ("--from", whole, "--size", "50%"),
        ("--from", whole, "--size", "50%", "--block", "8x1", "--out", out),
    ):
        assert run("extract", *usage).exit_code == 2


@contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    """``python -m http.server`` as a user starts it; it supports no byte ranges of bytes."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().split(' port ')[1].split()[0]}"
        finally:
            server.terminate()


def test_a_plain_web_server_is_enough(
    world: World, nested: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    whole, written = nested
    prefix = tmp_path / "small.omni"
    with plain_server(whole.parent) as address:
        url = f"{address}/{whole.name}"
        seen = run_json("inspect", url)
        assert seen["bytes"] == written["bytes"]
        assert [band["bytes"] for band in seen["bands"]] == [
            band["bytes"] for band in written["prefixes"]
        ]
        assert "supports no byte ranges" in run("inspect", url).stderr
        made = run_json("extract", "--from", url, "--size", "40%", "--prefix", prefix)
        data = whole.read_bytes()
        assert prefix.read_bytes() == data[: made["bytes"]]
        assert made["bytes"] in [band["bytes"] for band in seen["bands"]]
        assert made["nonzero"] >= 0.4 * written["parameters"]
        grown = run_json("grow", prefix, "--from", url, "--size", f"{len(data)}B")
        assert grown["bytes"] == len(data)
        heard = run_json("transcribe", url, world.wav, "--size", "50%")
    assert prefix.read_bytes() == data
    expected = run_json("transcribe", world.artifact, world.wav)
    local = run_json("transcribe", whole, world.wav, "--size", "50%")
    texts = {result["results"][0]["text"] for result in (heard, expected, local)}
    assert len(texts) == 1
    dense = run_json("transcribe", whole, world.wav)["results"][0]["text"]
    assert dense == run_json("transcribe", world.run, world.wav)["results"][0]["text"]
    assert "goes with a nested file" in fails("transcribe", world.run, world.wav, "--size", "50%")
    assert "legal" in fails("transcribe", whole, world.wav, "--size", "1%")
    for usage in (
        ("--prefix", prefix),
        ("--prefix", prefix, "--from", whole),
        ("--prefix", prefix, "--from", whole, "--size", "50%", "--precision", "int8"),
    ):
        assert run("extract", *usage).exit_code == 2
