"""From a NeMo LSTM transducer to a small model of it: import, train, extract, pack, recognise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nemo_net
import pytest
import soundfile
import torch
from foreign_net import assert_refused, cli, error_of, fine_tuning, train_and_extract, wavs_of
from nemo_net import MODEL, StandIn, make_small

import omnisparse
from omnisparse.config import RunConfig, load_config
from omnisparse.data.features import FeatureExtractor
from omnisparse.deploy.transducer import Transducer
from omnisparse.pipeline.train import train
from omnisparse.runs.foreign import load_foreign_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

RECIPE = Path(__file__).parents[2] / "recipes" / "configs" / "nemo_lstm_finetune.yaml"
FEATURES = {"kind": "nemo", "stack": 1, "num_bins": nemo_net.BINS, "normalize": "none"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nemo") / "small.nemo"


@pytest.fixture(scope="module")
def theirs(archive: Path) -> StandIn:
    return make_small(archive)


@pytest.fixture
def configured(speech: Path, archive: Path, theirs: StandIn):
    def make(init: str = f"nemo:{archive}", **changes: Any) -> RunConfig:
        return fine_tuning(speech, init, features=FEATURES, model=MODEL, **changes)

    return make


@torch.no_grad()
@pytest.mark.parametrize("normalize", ["none", "utterance"])
def test_from_audio_to_the_text_that_they_give(
    configured, theirs: StandIn, archive: Path, speech: Path, tmp_path: Path, normalize: str
) -> None:
    place = archive
    if normalize == "utterance":
        place = tmp_path / "other.nemo"
        make_small(place, preprocessor__normalize="per_feature")
    config = configured(
        f"nemo:{place}",
        training__max_steps=0,
        data__features={**FEATURES, "normalize": normalize},
    )
    run = train(config, out=tmp_path / "run").run
    extractor = FeatureExtractor(
        num_bins=nemo_net.BINS, stack=1, kind="nemo", per_utterance=normalize == "utterance"
    )
    tokenizer = load_foreign_tokenizer(f"nemo:{archive}")
    packed = tmp_path / "packed"
    cli("extract", "--run", run, "--size", "100%", "--out", packed)
    recogniser = omnisparse.Recognizer.from_path(packed)
    assert isinstance(recogniser.engine, Transducer)  # our kernels, without torch
    total = 0
    for wav in wavs_of(speech)[:2]:  # the third is cut at a pause if the net cannot stream
        samples, rate = soundfile.read(wav, dtype="float32")
        assert rate == 16000
        ids = theirs.greedy(torch.from_numpy(extractor(samples)))
        total += len(ids)
        expected = tokenizer.decode([{0: 2}.get(token, token + 2) for token in ids])
        assert cli("transcribe", run, wav)["results"][0]["text"] == expected
        assert recogniser.transcribe(samples).text == expected
    assert total > 15
    if normalize == "utterance":
        assert not recogniser.streams
        told = error_of(2, "transcribe", packed, wav, "--streaming")
        assert "normalised by the whole utterance" in told


def test_import_train_extract_pack_and_recognise(configured, speech: Path, tmp_path: Path) -> None:
    recogniser, _ = train_and_extract(configured(), wavs_of(speech), tmp_path)
    assert isinstance(recogniser.engine, Transducer)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model__encoder_dim": 40}, r"weight_ih_l0 is \[128, 24\] there and \[160, 24\] here"),
        ({"model__predictor_layers": 3}, r"predictor.layers.2.* is absent there"),
        (
            {"data__features": {**FEATURES, "kind": "kaldi"}},
            r"reads features with kind nemo; this run's have kaldi \(data.features.kind\)",
        ),
        (
            {"data__features": {**FEATURES, "normalize": "utterance"}},
            r"per_utterance False; this run's have True \(data.features.normalize\)",
        ),
        ({"init": "nemo:/nowhere.nemo"}, r"/nowhere.nemo: no such file; nemo:PATH"),
    ],
)
def test_what_does_not_fit_is_one_line(configured, changes, line: str, tmp_path: Path) -> None:
    assert_refused(configured(**changes), line, tmp_path)


def test_the_recipe_is_that_of_nemos_configuration() -> None:
    config = load_config(RECIPE)
    assert config.model.family == "nemo"
    assert config.data.features.kind == "nemo"
