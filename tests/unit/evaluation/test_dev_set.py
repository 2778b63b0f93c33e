"""A dev set in memory: what it counts, and the name that measurements on it are filed under."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from omnisparse.data.corpora import load_manifest
from omnisparse.data.features import FeatureExtractor
from omnisparse.errors import DataError
from omnisparse.evaluation.dev_set import DevSet

TEXTS = ("turn on the light", "", "stop", "what time is it")


class Letters:
    def encode(self, text: str) -> list[int]:
        return [3 + ord(letter) % 20 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "um"


def write(folder: Path, *, loudness: float = 0.1, texts: tuple[str, ...] = TEXTS) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = []
    for index, text in enumerate(texts):
        samples = loudness * generator.standard_normal(8000 + 1600 * index)
        soundfile.write(folder / f"u{index}.wav", samples, 16000)
        duration = len(samples) / 16000
        lines.append({"audio_filepath": f"u{index}.wav", "duration": duration, "text": text})
    manifest = folder / "dev.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def dev_set(manifest: Path) -> DevSet:
    tokenizer: Any = Letters()
    return DevSet(
        load_manifest(manifest), extractor=FeatureExtractor(num_bins=8), tokenizer=tokenizer,
        utterances_per_item=2,
    )  # fmt: skip


def test_units_are_those_of_the_utterances_with_words(tmp_path: Path) -> None:
    dev = dev_set(write(tmp_path / "a"))
    assert (dev.num_items, dev.num_utterances) == (2, 4)
    assert dev.words() == [5.0, 4.0]
    assert dev.tokens() == [4.0 + 1 + 17 + 1, 15.0 + 1]
    assert dev.utterances_of([0]) == 3
    with pytest.raises(DataError, match="no utterance with words"):
        dev_set(write(tmp_path / "silent", texts=("", "")))


class Talker(torch.nn.Module):
    """Hears one word everywhere; its label loss is the number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, features: Any, lengths: Any, tokens: Any, token_lengths: Any) -> Any:
        assert int(token_lengths.min()) > 0  # silence has no label
        return SimpleNamespace(label_loss_sum=token_lengths.sum())

    def decode(self, features: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
        return [[5] for _ in lengths]


def test_what_is_heard_in_silence_counts_as_an_insertion(tmp_path: Path) -> None:
    texts = ("stop", "", "", "what time is it", "", "")
    dev = dev_set(write(tmp_path / "a", texts=texts))
    counts = [one for item in dev.errors(Talker(), range(dev.num_items)) for one in item]
    assert sum(one.words for one in counts) == 5
    assert sum(one.insertions for one in counts) == 4
    assert dev.losses(Talker(), [0]) == [4.0 + 15.0]
    plain = dev_set(write(tmp_path / "b", texts=("stop", "what time is it")))
    assert plain.digest() != dev.digest()


def test_its_name_is_that_of_words_and_audio_wherever_they_lie(tmp_path: Path) -> None:
    """A search takes answers from a journal under this name: other audio must not get them."""
    name = dev_set(write(tmp_path / "a")).digest()
    assert dev_set(write(tmp_path / "moved")).digest() == name
    assert dev_set(write(tmp_path / "louder", loudness=0.2)).digest() != name
    other = ("turn off the light", *TEXTS[1:])
    assert dev_set(write(tmp_path / "other", texts=other)).digest() != name


def test_a_device_keeps_the_batches_for_the_models_that_follow(tmp_path: Path) -> None:
    """On "meta", a device that any machine has: what reaches the model is there, and once."""
    dev = dev_set(write(tmp_path / "a"))
    seen: list[torch.Tensor] = []

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

        def decode(self, features: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
            seen.append(features)
            return [[5]] * len(lengths)

    first, second = (dev.transcripts(Net(), [0, 1]) for _ in range(2))
    assert first == second == [["um", "um", "um"], ["um"]]
    assert {features.device.type for features in seen} == {"meta"}
    half = len(seen) // 2
    assert all(one is other for one, other in zip(seen[:half], seen[half:], strict=True))
