"""Frames from audio: those of the store, by any number of processes, from files and shards."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import CutSet

from omnisparse.data import live_features
from omnisparse.data.augmentation import SpecAugment
from omnisparse.data.batching import Batch, TrainingBatches
from omnisparse.data.corpora import load_manifest
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.live_features import FrameSource, LiveFeatures
from omnisparse.data.readers import Reader, read_by_processes
from omnisparse.data.room import RoomAugment
from omnisparse.data.sharding import shard_corpus
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import DataError

NOISE = {"augment": RoomAugment(noise_probability=0.7, seed=2)}


def make(
    cuts: CutSet, source: FrameSource, tokenizer: Tokenizer, **changes: Any
) -> TrainingBatches:
    fields: dict[str, Any] = {"batch_seconds": 4.0, "max_batch_size": 8, "num_buckets": 3}
    fields |= {"spec_augment": SpecAugment(), "seed": 5, "extractor": source.extractor(3)}
    return TrainingBatches(cuts, features=source, tokenizer=tokenizer, **(fields | changes))


def take(batches: TrainingBatches, count: int) -> list[Batch]:
    stream = iter(batches)
    try:
        return list(itertools.islice(stream, count))
    finally:
        stream.close()  # type: ignore[attr-defined]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.ids == b.ids and torch.equal(a.features, b.features) and torch.equal(a.tokens, b.tokens)
        for a, b in zip(one, other, strict=True)
    )


def test_live_frames_are_those_of_the_store(
    cuts: CutSet, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store = FeatureStore.build(cuts, tmp_path, num_jobs=1)
    live = LiveFeatures.prepare(cuts, tmp_path, num_jobs=1)
    for cut in cuts:
        np.testing.assert_array_equal(live.frames(cut.id), store.frames(cut.id))
    assert live.extractor(3).to_dict() == store.extractor(3).to_dict()
    assert same(take(make(cuts, store, tokenizer), 12), take(make(cuts, live, tokenizer), 12))


def test_shards_give_the_batches_of_the_manifest(
    cuts: CutSet, manifest: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shard_corpus(manifest, tmp_path / "shards", shard_size=15)
    sharded = load_manifest(tmp_path / "shards" / "train")
    plain, packed = (LiveFeatures.prepare(one, tmp_path, **NOISE) for one in (cuts, sharded))
    expected = take(make(cuts, plain, tokenizer), 14)
    assert same(expected, take(make(sharded, packed, tokenizer), 14))
    stored = FeatureStore.build(sharded, tmp_path, num_jobs=1)
    files = FeatureStore.build(cuts, tmp_path, num_jobs=1)
    assert same(take(make(sharded, stored, tokenizer), 4), take(make(cuts, files, tokenizer), 4))


def test_processes_read_the_same_and_resume_within_an_epoch(
    cuts: CutSet, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    live = LiveFeatures.prepare(cuts, tmp_path, **NOISE)
    straight = make(cuts, live, tokenizer)
    expected = take(straight, straight.steps_per_epoch + 4)
    first = make(cuts, live, tokenizer, workers=2)
    resumed = take(first, 5)
    second = make(cuts, live, tokenizer, workers=1)
    second.load_state_dict(first.state_dict())
    resumed += take(second, len(expected) - 5)
    assert same(resumed, expected)
    assert second.state_dict() == straight.state_dict()


def test_other_epochs_have_other_noise(cuts: CutSet, tmp_path: Path) -> None:
    live = LiveFeatures.prepare(cuts, tmp_path, **NOISE)
    name = cuts[0].id
    clean = live.frames(name)
    epochs = [live.frames(name, epoch) for epoch in range(12)]
    assert any(np.array_equal(one, clean) for one in epochs)
    assert sum(not np.array_equal(one, clean) for one in epochs) > 4
    assert len({one.tobytes() for one in epochs}) > 5
    np.testing.assert_array_equal(live.frames(name, 3), epochs[3])


def test_statistics_are_kept_and_of_a_drawn_part(
    cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = LiveFeatures.prepare(cuts, tmp_path / "every")
    monkeypatch.setattr(live_features, "STATISTICS_UTTERANCES", 10)
    part = LiveFeatures.prepare(cuts, tmp_path / "part")
    assert part.key != every.key
    np.testing.assert_allclose(part.extractor(1).mean, every.extractor(1).mean, atol=2.0)
    monkeypatch.setattr(live_features, "compute_frames", None)  # known by now
    again = LiveFeatures.prepare(cuts, tmp_path / "part")
    assert again.extractor(1).to_dict() == part.extractor(1).to_dict()


@pytest.mark.parametrize("workers", [0, 1])
def test_audio_that_is_gone_is_one_clear_line(
    write_corpus: Any, tokenizer: Tokenizer, tmp_path: Path, workers: int
) -> None:
    manifest = write_corpus(tmp_path / "c", 6)
    cuts = load_manifest(manifest)
    live = LiveFeatures.prepare(cuts, tmp_path)
    for path in (tmp_path / "c" / "audio").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"^train\d+: its audio cannot be read \(no such file"):
        take(make(cuts, live, tokenizer, workers=workers), 1)


class _Slow:
    skipped = ()
    key = ""

    def frames(self, utterance: str, epoch: int | None = None) -> np.ndarray:
        time.sleep(30)
        raise AssertionError


def test_a_reader_that_dies_or_hangs_ends_the_reading(cuts: CutSet, tmp_path: Path) -> None:
    live = LiveFeatures.prepare(cuts, tmp_path)
    slow: Any = _Slow()
    reader = Reader(slow, live.extractor(3), None, 0, 0)
    tasks = [(0, (cuts[0].id,))]
    with pytest.raises(DataError, match="no training data for 1 s"):
        next(read_by_processes(reader, tasks, num_processes=1, timeout=1.0))
    stream = read_by_processes(reader, tasks, num_processes=1)
    before = set(torch.multiprocessing.active_children())

    def kill() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for child in set(torch.multiprocessing.active_children()) - before:
                os.kill(child.pid or 0, signal.SIGKILL)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DataError, match="a process that reads training data died"):
        next(stream)
    killer.join()
