"""What the tests of nets from other toolkits share: word pieces, what is refused, a run of ours."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import omnisparse
from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig, config_from_dict
from omnisparse.errors import OmnisparseError
from omnisparse.models import TransducerConfig, TransducerModel, build_model
from omnisparse.pipeline.train import train
from omnisparse.runs.foreign import ForeignNet, load_foreign

TEXTS = (
    "turn on the lamp in the hall",
    "what is the weather like in june",
    "set the alarm for seven",
    "play some jazz",
    "call my brother back",
    "zip up the quick brown fox and vex him",
)


def train_pieces(vocab_size: int, **special_ids: int) -> bytes:
    """A sentencepiece model of ``TEXTS``, with sentencepiece's own special ids or others."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=written,
        model_type="bpe",
        vocab_size=vocab_size,
        num_threads=1,
        minloglevel=2,
        **special_ids,
    )
    return written.getvalue()


# A net of theirs in ours.


def into_ours(net: ForeignNet, shape: dict[str, Any]) -> TransducerModel:
    """Our net with their weights; ``shape`` is its section of a configuration."""
    fields = {key: value for key, value in shape.items() if key != "kind"}
    model = build_model(
        TransducerConfig(**fields), input_dim=net.extractor.input_dim, vocab_size=net.vocab_size
    )
    model.load_state_dict(dict(net.state))
    assert isinstance(model, TransducerModel)
    return model.eval()


def drawn(frames: int, bins: int, seed: int = 0) -> Tensor:
    """``[frames, bins]`` features."""
    return torch.randn(frames, bins, generator=torch.Generator().manual_seed(seed))


def assert_encodes_alike(ours: TransducerModel, frames: int) -> None:
    """In a batch and in chunks of any length, an utterance is encoded as alone."""
    features = drawn(frames, ours.input_dim, 2)
    alone, lengths = ours.encode(features[None], torch.tensor([frames]))
    batch = torch.randn(3, 71, ours.input_dim)
    batch[1, :frames] = features
    together, together_lengths = ours.encode(batch, torch.tensor([71, frames, 40]))
    length = int(lengths[0])
    assert int(together_lengths[1]) == length
    torch.testing.assert_close(together[1, :length], alone[0], rtol=1e-4, atol=1e-5)
    for step in (1, 4, 9, 100):
        found = encoded_in_chunks(ours, features, step)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def encoded_in_chunks(ours: TransducerModel, features: Tensor, step: int) -> Tensor:
    state, parts = ours.initial_state(1), []
    for start in range(0, len(features), step):
        chunk = features[None, start : start + step]
        part, state = ours.encode_chunk(chunk, state, final=start + step >= len(features))
        parts.append(part)
    return torch.cat(parts, dim=1)


# What is refused, in one line each.


class Touch:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refuses(family: str, place: Path, match: str) -> None:
    """A file of a toolkit is refused in one line."""
    with pytest.raises(OmnisparseError, match=match) as told:
        load_foreign(f"{family}:{place}")
    assert "\n" not in str(told.value)


Change = Callable[[dict[str, Tensor]], None]
"""A change of a checkpoint's tensors."""


def without(name: str) -> Change:
    def change(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.startswith(name)]:
            del state[key]

    return change


def with_nan_in(name: str) -> Change:
    def change(state: dict[str, Tensor]) -> None:
        state[name][3] = float("nan")

    return change


def another_net(state: dict[str, Tensor]) -> None:
    state.clear()
    state.update(nn.LSTM(3, 4).state_dict())


# A run of ours that starts from theirs.


def fine_tuning(
    speech: Path, init: str, *, features: dict[str, Any], model: dict[str, Any], **changes: Any
) -> RunConfig:
    """Three sandwich steps on a corpus.

    Args:
        speech: Folder of the corpus.
        init: Whose weights.
        features: Section ``data.features``.
        model: Section ``model``.
        **changes: Other values, by names with two underscores for a dot.
    """
    document: dict[str, Any] = {
        "name": "tuned",
        "init": init,
        "corpus": {
            **{"synthetic": None, "base": str(speech), "root": str(speech.parent)},
            **{"train": ["train.jsonl"], "dev": ["dev.jsonl"], "test": ["test.jsonl"]},
        },
        "data": {"batch_seconds": 30, "features": features},
        "model": dict(model),
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


def cli(*arguments: Any) -> dict[str, Any]:
    """What a verb prints with ``--json``."""
    result = CliRunner().invoke(verbs, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def error_of(code: int, *arguments: Any) -> str:
    """What a verb says that fails, on one line."""
    failed = CliRunner().invoke(verbs, [str(argument) for argument in arguments])
    assert failed.exit_code == code
    return " ".join(failed.stderr.split())


def wavs_of(speech: Path) -> list[Path]:
    """Three recordings."""
    lines = (speech / "test.jsonl").read_text().splitlines()[:3]
    return [speech / json.loads(line)["audio_filepath"] for line in lines]


def heard(recogniser: omnisparse.Recognizer, wav: Path) -> str:
    """The text of a stream in parts."""
    stream = recogniser.stream()
    samples, _ = soundfile.read(wav, dtype="float32")
    for start in range(0, len(samples), 1234):
        stream.accept(samples[start : start + 1234])
    return stream.finish().text


def train_and_extract(
    config: RunConfig, wavs: list[Path], folder: Path
) -> tuple[omnisparse.Recognizer, list[str]]:
    """The whole way of a net of theirs: import, train, extract, pack, recognise, go on.

    Returns:
        A recogniser of a quarter of the net, and what the training told of its stages.
    """
    lines: list[str] = []
    assert config.model.kind == "transducer"
    family = config.model.family
    done = train(config, out=folder / "run", on_stage=lines.append)
    assert done.steps == 3
    assert any(line.startswith(f"word pieces of {family}:") for line in lines)
    assert {"loss/dense", "loss/smallest", "loss/random_0"} <= set(done.metrics)
    small = folder / "small"
    told = cli("extract", "--run", done.run, "--size", "25%", "--out", small)
    assert told["nonzero"] == round(0.25 * told["parameters"])
    assert cli("inspect", small)["problems"] == []
    recogniser = omnisparse.Recognizer.from_path(small)
    for wav in wavs:
        (offline,) = cli("transcribe", small, wav)["results"]
        (streamed,) = cli("transcribe", small, wav, "--streaming")["results"]
        assert streamed["text"] == heard(recogniser, wav) == offline["text"]
    # The run goes on from its own checkpoint, with the same pieces.
    assert train(config, out=folder / "run").steps == 3
    assert f"family {family}" in error_of(1, "export", small, "--format", "onnx")
    return recogniser, lines


def assert_refused(config: RunConfig, line: str, folder: Path) -> None:
    """A training that cannot start says why in one line."""
    with pytest.raises(OmnisparseError, match=line) as told:
        train(config, out=folder / "run")
    assert "\n" not in str(told.value)
