"""A dev set in memory: what it counts, and the name that measurements on it are filed under."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omnisparse.data.corpora import load_manifest
from omnisparse.data.features import FeatureExtractor
from omnisparse.errors import DataError
from omnisparse.evaluation.dev_set import DevSet

TEXTS = ("turn on the light", "", "stop", "what time is it")


class Letters:
    def encode(self, text: str) -> list[int]:
        return [3 + ord(letter) % 20 for letter in text]


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
    assert (dev.num_items, dev.num_utterances) == (2, 3)
    assert dev.words() == [5.0, 4.0]
    assert dev.tokens() == [4.0 + 1 + 17 + 1, 15.0 + 1]
    with pytest.raises(DataError, match="no utterance with words"):
        dev_set(write(tmp_path / "silent", texts=("", "")))


def test_its_name_is_that_of_words_and_audio_wherever_they_lie(tmp_path: Path) -> None:
    """A search takes answers from a journal under this name: other audio must not get them."""
    name = dev_set(write(tmp_path / "a")).digest()
    assert dev_set(write(tmp_path / "moved")).digest() == name
    assert dev_set(write(tmp_path / "louder", loudness=0.2)).digest() != name
    other = ("turn off the light", *TEXTS[1:])
    assert dev_set(write(tmp_path / "other", texts=other)).digest() != name
