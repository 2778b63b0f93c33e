"""From torchaudio's Emformer RNN-T to a small model of it: import, train, extract, pack, stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from torch import nn
from torchaudio_net import SMALL_MODEL, make_small

import omnisparse
from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig, config_from_dict
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.train import train
from omnisparse.runs.foreign import load_foreign


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchaudio")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> nn.Module:
    return make_small(folder)


@pytest.fixture
def configured(speech_root: Path, speech: Path, folder: Path, theirs: nn.Module):
    def make(**changes: Any) -> RunConfig:
        document: dict[str, Any] = {
            "name": "tuned",
            "init": f"torchaudio:{folder}",
            "corpus": {
                **{"synthetic": None, "base": str(speech), "root": str(speech_root)},
                **{"train": ["train.jsonl"], "dev": ["dev.jsonl"], "test": ["test.jsonl"]},
            },
            "data": {
                "batch_seconds": 30,
                "features": {"kind": "torchaudio", "stack": 1, "num_bins": 20},
            },
            "model": dict(SMALL_MODEL),
            "method": {
                **{"kind": "sandwich", "min_size": "20%", "warmup_fraction": 0.0},
                "full_batch": True,
                "prunable": ["attention.*weight", "pos_ff.*weight", "projection", "2g", "output"],
            },
            "training": {"max_steps": 3, "log_every": 1},
        }
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (document[section] if section else document)[name] = value
        return config_from_dict(document)

    return make


def cli(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(verbs, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def wav_of(speech: Path) -> Path:
    line = (speech / "test.jsonl").read_text().splitlines()[0]
    return speech / json.loads(line)["audio_filepath"]


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero")
@torch.no_grad()
def test_from_audio_to_the_text_that_torchaudio_gives(
    configured, theirs: nn.Module, folder: Path, speech: Path, tmp_path: Path
) -> None:
    from torchaudio.transforms import MelSpectrogram

    run = train(configured(training__max_steps=0), out=tmp_path / "run").run
    found = cli("transcribe", run, wav_of(speech))["results"][0]["text"]
    samples, rate = soundfile.read(wav_of(speech), dtype="float32")
    assert rate == 16000
    frames = MelSpectrogram(sample_rate=16000, n_fft=400, n_mels=20, hop_length=160)(
        torch.from_numpy(samples)
    ).t()
    frames = frames * 32767.0**2
    frames = torch.where(frames > np.e, frames.clamp(min=1).log(), frames / np.e)
    statistics = json.loads((folder / "global_stats.json").read_text())
    frames = (frames - torch.tensor(statistics["mean"])) * torch.tensor(statistics["invstddev"])
    padded = nn.functional.pad(frames, (0, 0, 0, 4))
    encoded, _ = theirs.transcribe(padded[None], torch.tensor([len(padded)]))
    one, blank, ids = torch.tensor([1]), 48, []
    predicted, _, state = theirs.predict(torch.tensor([[blank]]), one, None)
    for frame in encoded[0]:
        for _ in range(5):
            token = int(theirs.join(frame[None, None], one, predicted, one)[0].argmax())
            if token == blank:
                break
            ids.append(token)
            predicted, _, state = theirs.predict(torch.tensor([[token]]), one, state)
    tokenizer = load_foreign(f"torchaudio:{folder}").tokenizer
    ours = [{0: 2, 1: 1}.get(token, token + 1) for token in ids]
    assert len(ours) > 5
    assert found == tokenizer.decode(ours)


def test_import_train_extract_pack_and_stream(configured, speech: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    done = train(configured(), out=tmp_path / "run", on_stage=lines.append)
    assert done.steps == 3
    assert any(line.startswith("word pieces of torchaudio:") for line in lines)
    assert any("normalised by the statistics of torchaudio:" in line for line in lines)
    assert {"loss/dense", "loss/smallest", "loss/random_0"} <= set(done.metrics)
    small = tmp_path / "small"
    told = cli("extract", "--run", done.run, "--size", "25%", "--out", small)
    assert told["nonzero"] == round(0.25 * told["parameters"])
    assert cli("inspect", small)["problems"] == []
    wav = wav_of(speech)
    (offline,) = cli("transcribe", small, wav)["results"]
    (streamed,) = cli("transcribe", small, wav, "--streaming")["results"]
    assert streamed["text"] == offline["text"]
    recogniser = omnisparse.Recognizer.from_path(small)
    stream = recogniser.stream()
    samples, _ = soundfile.read(wav, dtype="float32")
    for start in range(0, len(samples), 1234):
        stream.accept(samples[start : start + 1234])
    assert stream.finish().text == offline["text"]
    # The run goes on from its own checkpoint, with the same pieces.
    again = train(configured(), out=tmp_path / "run")
    assert again.steps == 3
    failed = CliRunner().invoke(verbs, ["export", str(small), "--format", "onnx"])
    assert failed.exit_code == 1
    assert "family torchaudio" in " ".join(failed.stderr.split())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model__family": "omnisparse", "method__prunable": ["pos_ff"]},
            r"init torchaudio:.*: .* is .* there and .* here",
        ),
        ({"model__encoder_layers": 2}, r"emformer_layers.2.* is .* there and absent here"),
        (
            {"data__features": {"kind": "kaldi", "stack": 1, "num_bins": 20}},
            r"reads features with kind torchaudio; this run's have kaldi \(data.features.kind\)",
        ),
        ({"init": "torchaudio:/nowhere"}, r"/nowhere: no such file; torchaudio:PATH"),
        (
            {"method__core_fraction": 0.5, "method__shrink_fraction": 0.0},
            r"core_fraction is 0.5; it clears the weights of the net that is started from",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(configured, changes, line: str, tmp_path: Path) -> None:
    with pytest.raises(OmnisparseError, match=line) as told:
        train(configured(**changes), out=tmp_path / "run")
    assert "\n" not in str(told.value)
