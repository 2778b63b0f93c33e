"""A training on shards is the training on files, with any number of readers and interruptions."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from omnisparse.config import RunConfig
from omnisparse.data.augmentation import AugmentationConfig
from omnisparse.data.sharding import shard_corpus
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.train import train
from omnisparse.training.checkpoint import load_newest
from omnisparse.training.stop_signals import InterruptedTrainingError


def on(config: RunConfig, manifest: Path, noise: Path, workers: int) -> RunConfig:
    augmentation = AugmentationConfig(noise=str(noise), noise_probability=0.8)
    data = dataclasses.replace(
        config.data, frames="live", workers=workers, augmentation=augmentation
    )
    corpus = dataclasses.replace(config.corpus, synthetic=None, train=(str(manifest),))
    return dataclasses.replace(config, data=data, corpus=corpus)


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint.tensors["model"]


def test_shards_workers_and_interruptions_change_nothing(
    tiny_config: Callable[..., RunConfig], speech: Path, tmp_path: Path
) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    recorded = np.random.default_rng(0).standard_normal(30000).astype(np.float32) / 8
    soundfile.write(noise / "a.wav", recorded, 16000)
    config = tiny_config(max_steps=9)
    shard_corpus(speech / "train.jsonl", tmp_path / "shards", shard_size=7)

    straight, sharded = tmp_path / "straight", tmp_path / "sharded"
    train(on(config, speech / "train.jsonl", noise, 0), out=straight)

    def stop_at(step: int) -> Callable[..., None]:
        def on_progress(done: int, max_steps: int, metrics: object) -> None:
            if done == step:
                os.kill(os.getpid(), signal.SIGTERM)

        return on_progress

    shards = tmp_path / "shards" / "train"
    for step, workers in ((4, 1), (7, 2)):  # within an epoch
        with pytest.raises(InterruptedTrainingError, match=f"step {step} of 9"):
            train(on(config, shards, noise, workers), out=sharded, on_progress=stop_at(step))
    # Other noise would give another net without a word.
    soundfile.write(noise / "b.wav", recorded, 16000)
    with pytest.raises(OmnisparseError, match=r"the recordings of data\.augmentation\.noise"):
        train(on(config, shards, noise, 0), out=sharded)
    (noise / "b.wav").unlink()
    assert train(on(config, shards, noise, 0), out=sharded).steps == 9
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(sharded)[name]), name
