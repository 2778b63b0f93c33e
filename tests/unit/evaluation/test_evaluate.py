"""Evaluation against a stand-in model whose transcripts are known."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from omnisparse.errors import DataError
from omnisparse.evaluation.evaluate import Decoder, evaluate
from omnisparse.evaluation.heard import Heard
from omnisparse.evaluation.wer import corpus_wer, word_errors

WORDS = ["<blk>", "<sos>", "<unk>", "play", "stop", "music", "now"]


@dataclass
class Supervision:
    text: str | None
    speaker: str | None = None


@dataclass
class Cut:
    """The part of a lhotse cut that evaluation uses; its audio is a constant `level`."""

    id: str
    text: str | None
    level: float
    duration: float = 1.0
    sampling_rate: int = 16000
    samples: np.ndarray | None = None
    supervisions: list[Supervision] = field(init=False)

    def __post_init__(self) -> None:
        self.supervisions = [Supervision(self.text)]

    @property
    def num_samples(self) -> int:
        return round(self.duration * self.sampling_rate)

    def resample(self, sampling_rate: int) -> Cut:
        return Cut(self.id, self.text, self.level, self.duration, sampling_rate)

    def load_audio(self) -> np.ndarray:
        if self.samples is not None:
            return self.samples
        return np.full((1, int(self.duration * self.sampling_rate)), self.level, np.float32)


class Extractor:
    sampling_rate = 16000

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        return samples[: len(samples) // 160 * 160].reshape(-1, 160)[:, :2]


class Tokens:
    def decode(self, ids: list[int]) -> str:
        return " ".join(WORDS[i] for i in ids if i > 1)


class EchoModel(torch.nn.Module):
    """Says `WORDS[level]` once per utterance; remembers the batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.batches: list[tuple[int, int, int]] = []

    def decode(
        self, features: torch.Tensor, lengths: torch.Tensor, *, beam: int = 1
    ) -> list[list[int]]:
        assert not self.training
        assert features.shape[1] == int(lengths.max())
        self.batches.append((features.shape[0], int(lengths.min()), beam))
        return [[int(row[0, 0])] for row in features]


def _evaluate(model: Any, cuts: list[Cut], **options: Any) -> Any:
    progress = options.pop("progress", None)
    decoder = Decoder(model, Extractor(), Tokens(), **options)  # type: ignore[arg-type]
    return evaluate(decoder, cuts, progress=progress)


def test_counts_come_back_in_corpus_order_whatever_the_batches() -> None:
    cuts = [
        Cut("a", "play music", 3, duration=3.0),
        Cut("b", "stop", 4, duration=1.0),
        Cut("c", "music", 6, duration=2.0),
    ]
    for batch_seconds in (1.0, 4.0, 100.0):
        result = _evaluate(EchoModel(), cuts, batch_seconds=batch_seconds)
        assert [u.hypothesis for u in result.hypotheses] == ["play", "stop", "now"]
        assert [u.id for u in result.hypotheses] == ["a", "b", "c"]
        assert (result.substitutions, result.deletions, result.insertions) == (1, 1, 0)
        assert (result.words, result.utterances) == (4, 3)
        assert result.wer == 50.0
        assert result.wer_low <= result.wer <= result.wer_high
        assert result.audio_seconds == 6.0
        assert result.rtf == pytest.approx(result.seconds / 6.0)


def test_padding_stays_within_the_batch_length() -> None:
    model = EchoModel()
    _evaluate(model, [Cut(str(i), "play", 3, duration=1.0) for i in range(10)], batch_seconds=4.0)
    assert [size for size, _, _ in model.batches] == [4, 4, 2]


def test_other_rates_are_resampled_and_channels_mixed() -> None:
    stereo = np.stack([np.full(16000, 2, np.float32), np.full(16000, 4, np.float32)])
    cuts = [Cut("a", "play", 3, sampling_rate=8000), Cut("b", "play", 0, samples=stereo)]
    assert _evaluate(EchoModel(), cuts).wer == 0.0


def test_beam_progress_and_training_mode() -> None:
    model = EchoModel().train()
    seen: list[tuple[int, int]] = []
    _evaluate(model, [Cut("a", "play", 3)], beam=4, progress=lambda *at: seen.append(at))
    assert model.batches[0][2] == 4
    assert seen == [(1, 1)]
    assert model.training


def test_another_way_to_transcribe_takes_the_models_place() -> None:
    lengths: list[int] = []

    def transcribe(samples: np.ndarray) -> str:
        lengths.append(len(samples))
        return "stop"

    cuts = [Cut("a", "stop", 3), Cut("b", "stop now", 3, duration=0.5)]
    model = EchoModel()
    result = _evaluate(model, cuts, transcribe=transcribe)
    assert result.deletions == result.wer * result.words / 100 == 1
    assert lengths == [16000, 8000]
    assert not model.batches


def test_dict_holds_the_contract() -> None:
    result = _evaluate(EchoModel(), [Cut("a", "play", 3)])
    assert list(result.to_dict()) == [
        "wer", "wer_low", "wer_high", "interval", "speakers", "words", "substitutions", "deletions",
        "insertions", "cer", "cer_low", "cer_high", "characters", "utterances", "audio_seconds",
        "seconds", "rtf",
    ]  # fmt: skip
    assert (result.wer_low, result.wer_high, result.interval) == (None, None, None)
    assert result.wer == corpus_wer(word_errors(["play"], ["play"]))


def test_bad_corpora_are_named() -> None:
    with pytest.raises(DataError, match="no utterance"):
        _evaluate(EchoModel(), [])
    with pytest.raises(DataError, match="all transcripts of the manifest are empty"):
        _evaluate(EchoModel(), [Cut("a", None, 3)])
    with pytest.raises(DataError, match="broken: its audio is empty"):
        _evaluate(EchoModel(), [Cut("broken", "play", 3, samples=np.full((1, 9), np.nan))])
    with pytest.raises(ValueError, match="beam"):
        _evaluate(EchoModel(), [Cut("a", "play", 3)], beam=0)
    with pytest.raises(ValueError, match="batch_seconds"):
        _evaluate(EchoModel(), [Cut("a", "play", 3)], batch_seconds=0)


def test_no_text_of_a_library_reaches_the_user() -> None:
    class Broken(Cut):
        def load_audio(self) -> np.ndarray:
            try:
                raise OSError("Error opening 'a.wav': Format not recognised.")
            except OSError as error:
                raise RuntimeError("Reading audio failed.\nDetails: many\nlines") from error

    with pytest.raises(DataError, match=r"^a: its audio cannot be read \(lhotse cannot"):
        _evaluate(EchoModel(), [Broken("a", "play", 3)])


def test_seconds_do_not_depend_on_whether_features_are_there() -> None:
    class Slow(Extractor):
        def to_dict(self) -> dict[str, Any]:
            return {}

        def __call__(self, samples: np.ndarray) -> np.ndarray:
            time.sleep(0.1)
            return super().__call__(samples)

    heard, cuts = Heard(), [Cut("a", "play", 3), Cut("b", "stop", 4)]
    for _ in range(2):
        decoder = Decoder(EchoModel(), Slow(), Tokens(), heard=heard)  # type: ignore[arg-type]
        result = evaluate(decoder, cuts)
        assert result.seconds >= 0.2
        assert result.wer == 0.0
