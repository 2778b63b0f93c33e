"""Small corpora of tones, written as the corpora of the world are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from omnisparse.data.corpora import load_manifest
from omnisparse.data.tokenizer import Tokenizer

RATE = 16000
WORDS = ("open", "the", "door", "close", "window", "light", "seven", "nine")

MakeManifest = Callable[..., Path]


def tone(seconds: float, pitch: float = 440.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(round(pitch)).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * noise).astype(np.float32)


@pytest.fixture(scope="session")
def write_corpus() -> MakeManifest:
    """Write `count` tones and a NeMo manifest of them; returns the manifest."""

    def write(folder: Path, count: int, name: str = "train") -> Path:
        generator = np.random.default_rng(count)
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        lines = []
        for index in range(count):
            samples = tone(float(generator.uniform(0.3, 1.5)), 200.0 + 10 * index)
            audio = f"audio/{name}{index:03d}.wav"
            soundfile.write(folder / audio, samples, RATE)
            text = " ".join(generator.choice(WORDS, size=3))
            lines.append(
                {
                    "id": f"{name}{index:03d}",
                    "audio_filepath": audio,
                    "duration": round(len(samples) / RATE, 2),
                    "text": text,
                    "speaker": f"speaker{index % 3}",
                }
            )
        manifest = folder / f"{name}.jsonl"
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return manifest

    return write


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_corpus: MakeManifest) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 40)


@pytest.fixture(scope="session")
def cuts(manifest: Path) -> CutSet:
    return load_manifest(manifest)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS)] * 3, 40, tmp_path_factory.mktemp("tokenizer"))
