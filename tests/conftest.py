"""Corpora for the tests: a minute of the embedded corpus, spoken once per session, and tones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import settings

from omnisparse.config import RunConfig, config_from_dict
from omnisparse.synthetic.corpus import SyntheticConfig, prepare_synthetic

# One profile for all property tests. An example may take its time: on a busy machine the
# default of 200 ms fails at random.
settings.register_profile(
    "omnisparse", max_examples=40, deadline=None, database=None, derandomize=True
)
settings.load_profile("omnisparse")

TINY = SyntheticConfig(preset="assistant-easy", hours=0.02)


@pytest.fixture(scope="session", autouse=True)
def _own_working_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs made by tests must not become the ``runs/latest`` of whoever starts the tests."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("working-directory"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests learn of audio stays out of the cache of whoever starts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNISPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def speech_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus root that holds the tiny corpus under the name a configuration gives it."""
    root = tmp_path_factory.mktemp("corpora")
    prepare_synthetic(TINY, root / "assistant-easy-0.02h-0", num_jobs=1)
    return root


@pytest.fixture(scope="session")
def speech(speech_root: Path) -> Path:
    """Folder of the tiny corpus: ``train.jsonl``, ``dev.jsonl``, ``test.jsonl``."""
    return speech_root / "assistant-easy-0.02h-0"


@pytest.fixture
def tiny_config(speech_root: Path) -> Callable[..., RunConfig]:
    """Configurations of nets that train in milliseconds on the tiny corpus."""

    def make(model: str = "las", method: str = "sandwich", **training: Any) -> RunConfig:
        shape = {"encoder_layers": 2, "encoder_dim": 24, "embedding_dim": 8}
        if model == "las":
            shape |= {"decoder_dim": 24, "attention_dim": 8, "attention_heads": 2}
        else:
            # Steps 0 to 2 train the encoder by CTC alone, the others everything.
            shape |= {"predictor_dim": 16, "joiner_dim": 16, "predictor_warmup": 3}
        sandwich = {
            "min_size": "40%", "warmup_fraction": 0.2, "shrink_fraction": 0.0, "refresh_every": 3
        }  # fmt: skip
        return config_from_dict(
            {
                "name": "tiny",
                "corpus": {
                    "synthetic": {"preset": TINY.preset, "hours": TINY.hours},
                    "root": str(speech_root),
                },
                "data": {
                    "vocab_size": 40,
                    "batch_seconds": 20,
                    "max_batch_size": 6,
                    "max_seconds": 15,
                    "features": {"stack": 3 if model == "las" else 4},
                },
                "model": {"kind": model, **shape},
                "method": {"kind": method, **(sandwich if method == "sandwich" else {})},
                "training": {"max_steps": 10, "log_every": 1, "warmup_steps": 2, **training},
            }
        )

    return make


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
