"""From torchaudio's Emformer RNN-T to a small model of it: import, train, extract, pack, stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from foreign_net import assert_refused, cli, fine_tuning, train_and_extract, wavs_of
from torch import nn
from torchaudio_net import SMALL_MODEL, make_small

from omnisparse.config import RunConfig
from omnisparse.pipeline.train import train
from omnisparse.runs.foreign import load_foreign

FEATURES = {"kind": "torchaudio", "stack": 1, "num_bins": 20}
PRUNABLE = ["attention.*weight", "pos_ff.*weight", "projection", "2g", "output"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchaudio")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> nn.Module:
    return make_small(folder)


@pytest.fixture
def configured(speech: Path, folder: Path, theirs: nn.Module):
    def make(init: str = f"torchaudio:{folder}", **changes: Any) -> RunConfig:
        changes = {"method__prunable": PRUNABLE, **changes}
        return fine_tuning(speech, init, features=FEATURES, model=SMALL_MODEL, **changes)

    return make


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero")
@torch.no_grad()
def test_from_audio_to_the_text_that_torchaudio_gives(
    configured, theirs: nn.Module, folder: Path, speech: Path, tmp_path: Path
) -> None:
    from torchaudio.transforms import MelSpectrogram

    run = train(configured(training__max_steps=0), out=tmp_path / "run").run
    wav = wavs_of(speech)[0]
    found = cli("transcribe", run, wav)["results"][0]["text"]
    samples, rate = soundfile.read(wav, dtype="float32")
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
    _, lines = train_and_extract(configured(), wavs_of(speech)[:1], tmp_path)
    assert any("normalised by the statistics of torchaudio:" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model__family": "omnisparse", "method__prunable": ["pos_ff"]},
            r"init torchaudio:.*: .* is .* there and .* here",
        ),
        ({"model__encoder_layers": 2}, r"emformer_layers.2.* is .* there and absent here"),
        (
            {"data__features": {**FEATURES, "kind": "kaldi"}},
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
    assert_refused(configured(**changes), line, tmp_path)
