"""From a NeMo LSTM transducer to a small model of it: import, train, extract, pack, recognise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nemo_net
import pytest
import soundfile
import torch
from click.testing import CliRunner
from nemo_net import MODEL, StandIn, make_small

import omnisparse
from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig, config_from_dict, load_config
from omnisparse.data.features import FeatureExtractor
from omnisparse.deploy.transducer import Transducer
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.train import train
from omnisparse.runs.foreign import load_foreign_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

RECIPE = Path(__file__).parents[2] / "recipes" / "configs" / "nemo_lstm_finetune.yaml"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nemo") / "small.nemo"


@pytest.fixture(scope="module")
def theirs(archive: Path) -> StandIn:
    return make_small(archive)


@pytest.fixture
def configured(speech_root: Path, speech: Path, archive: Path, theirs: StandIn):
    def make(**changes: Any) -> RunConfig:
        document: dict[str, Any] = {
            "name": "tuned",
            "init": f"nemo:{archive}",
            "corpus": {
                **{"synthetic": None, "base": str(speech), "root": str(speech_root)},
                **{"train": ["train.jsonl"], "dev": ["dev.jsonl"], "test": ["test.jsonl"]},
            },
            "data": {
                "batch_seconds": 30,
                "features": {
                    **{"kind": "nemo", "stack": 1, "num_bins": nemo_net.BINS},
                    "normalize": "none",
                },
            },
            "model": dict(MODEL),
            "method": {
                **{"kind": "sandwich", "min_size": "20%", "warmup_fraction": 0.0},
                "full_batch": True,
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


def wavs_of(speech: Path) -> list[Path]:
    lines = (speech / "test.jsonl").read_text().splitlines()[:3]
    return [speech / json.loads(line)["audio_filepath"] for line in lines]


@torch.no_grad()
@pytest.mark.parametrize("normalize", ["none", "utterance"])
def test_from_audio_to_the_text_that_they_give(
    configured, theirs: StandIn, archive: Path, speech: Path, tmp_path: Path, normalize: str
) -> None:
    place = archive
    if normalize == "utterance":
        place = tmp_path / "other.nemo"
        make_small(place, preprocessor__normalize="per_feature")
    features = {"kind": "nemo", "stack": 1, "num_bins": nemo_net.BINS, "normalize": normalize}
    config = configured(training__max_steps=0, init=f"nemo:{place}", data__features=features)
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
        failed = CliRunner().invoke(verbs, ["transcribe", str(packed), str(wav), "--streaming"])
        assert failed.exit_code == 2
        assert "normalised by the whole utterance" in " ".join(failed.stderr.split())


def test_import_train_extract_pack_and_recognise(configured, speech: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    done = train(configured(), out=tmp_path / "run", on_stage=lines.append)
    assert done.steps == 3
    assert any(line.startswith("word pieces of nemo:") for line in lines)
    assert {"loss/dense", "loss/smallest", "loss/random_0"} <= set(done.metrics)
    small = tmp_path / "small"
    told = cli("extract", "--run", done.run, "--size", "25%", "--out", small)
    assert told["nonzero"] == round(0.25 * told["parameters"])
    assert cli("inspect", small)["problems"] == []
    recogniser = omnisparse.Recognizer.from_path(small)
    assert isinstance(recogniser.engine, Transducer)
    for wav in wavs_of(speech):
        (offline,) = cli("transcribe", small, wav)["results"]
        (streamed,) = cli("transcribe", small, wav, "--streaming")["results"]
        assert streamed["text"] == offline["text"]
        stream = recogniser.stream()
        samples, _ = soundfile.read(wav, dtype="float32")
        for start in range(0, len(samples), 1234):
            stream.accept(samples[start : start + 1234])
        assert stream.finish().text == offline["text"]
    again = train(configured(), out=tmp_path / "run")
    assert again.steps == 3
    failed = CliRunner().invoke(verbs, ["export", str(small), "--format", "onnx"])
    assert failed.exit_code == 1
    assert "family nemo" in " ".join(failed.stderr.split())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model__encoder_dim": 40}, r"weight_ih_l0 is \[128, 24\] there and \[160, 24\] here"),
        ({"model__predictor_layers": 3}, r"predictor.layers.2.* is absent there"),
        (
            {"data__features": {"kind": "kaldi", "stack": 1, "num_bins": nemo_net.BINS}},
            r"reads features with kind nemo; this run's have kaldi \(data.features.kind\)",
        ),
        (
            {
                "data__features": {
                    **{"kind": "nemo", "stack": 1, "num_bins": nemo_net.BINS},
                    "normalize": "utterance",
                }
            },
            r"per_utterance False; this run's have True \(data.features.normalize\)",
        ),
        ({"init": "nemo:/nowhere.nemo"}, r"/nowhere.nemo: no such file; nemo:PATH"),
    ],
)
def test_what_does_not_fit_is_one_line(configured, changes, line: str, tmp_path: Path) -> None:
    with pytest.raises(OmnisparseError, match=line) as told:
        train(configured(**changes), out=tmp_path / "run")
    assert "\n" not in str(told.value)


def test_the_recipe_is_that_of_nemos_configuration() -> None:
    config = load_config(RECIPE)
    assert config.model.family == "nemo"
    assert config.data.features.kind == "nemo"
