"""The store holds what the extractor computes, is found again, and is made again when damaged."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from omnisparse.data import feature_store
from omnisparse.data import frame_blocks as module
from omnisparse.data.audio import read_samples
from omnisparse.data.corpora import load_manifest, perturb_speed
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.features import FeatureExtractor
from omnisparse.errors import DataError


def contents(store: FeatureStore) -> tuple[bytes, dict[str, object]]:
    index = json.loads((store.folder / "index.json").read_text())
    return (store.folder / "features.f16").read_bytes(), index


def test_frames_are_those_of_the_extractor(cuts: CutSet, tmp_path: Path) -> None:
    copies = perturb_speed(cuts.subset(first=6), (0.9, 1.0))
    store = FeatureStore.build(copies, tmp_path)
    extractor = FeatureExtractor()
    everything = []
    for cut in copies:
        frames = extractor.fbank(read_samples(cut))
        everything.append(frames)
        assert store.num_frames(cut.id) == len(frames) == extractor.num_frames(cut.num_samples)
        np.testing.assert_allclose(store.frames(cut.id), frames, atol=1e-2)
    joined = np.concatenate(everything)
    np.testing.assert_allclose(store.mean, joined.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(store.std, joined.std(axis=0), atol=1e-3)
    assert len(store) == 12


def test_processes_do_not_change_the_result(
    cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8)
    seen: list[tuple[int, int]] = []
    two = FeatureStore.build(
        cuts, tmp_path / "2", num_jobs=2, progress=lambda *done: seen.append(done)
    )
    one = FeatureStore.build(cuts, tmp_path / "1", num_jobs=1)
    assert contents(one) == contents(two)
    assert seen[-1] == (40, 40)
    assert len(seen) == 5


def test_store_is_computed_once(
    cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FeatureStore.build(cuts, tmp_path, num_jobs=1)
    monkeypatch.setattr(feature_store, "_compute", None)  # computing again would fail
    again = FeatureStore.build(cuts, tmp_path, in_memory=True)
    assert again.folder == first.folder
    for store in (again, pickle.loads(pickle.dumps(first))):
        np.testing.assert_array_equal(store.frames("train003"), first.frames("train003"))


def test_key_depends_on_cuts_settings_and_files(manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(manifest.parent / "audio", tmp_path / "audio")
    cuts = load_manifest(Path(shutil.copy(manifest, tmp_path / "train.jsonl"))).subset(first=3)
    folders = {FeatureStore.build(cuts, tmp_path / "c", num_jobs=1).folder}
    folders.add(FeatureStore.build(cuts, tmp_path / "c", num_jobs=1, num_bins=40).folder)
    folders.add(FeatureStore.build(cuts.subset(first=2), tmp_path / "c", num_jobs=1).folder)
    folders.add(FeatureStore.build(cuts, tmp_path / "c", num_jobs=1, noise_probability=1).folder)
    folders.add(FeatureStore.build(perturb_speed(cuts, (0.9,)), tmp_path / "c").folder)
    shutil.copy(tmp_path / "audio" / "train009.wav", tmp_path / "audio" / "train000.wav")
    folders.add(FeatureStore.build(cuts, tmp_path / "c", num_jobs=1).folder)
    assert len(folders) == 6


@pytest.mark.parametrize("damage", ["frames", "index", "no frames", "no index", "other version"])
def test_damage_is_found_and_mended(cuts: CutSet, tmp_path: Path, damage: str) -> None:
    few = cuts.subset(first=4)
    store = FeatureStore.build(few, tmp_path, num_jobs=1)
    good = contents(store)
    frames, index = store.folder / "features.f16", store.folder / "index.json"
    if damage == "frames":
        frames.write_bytes(frames.read_bytes()[:-100])
    elif damage == "index":
        index.write_text(index.read_text()[:50])
    elif damage == "no frames":
        frames.unlink()
    elif damage == "no index":
        index.unlink()
    else:
        index.write_text(json.dumps(good[1] | {"format_version": 99}))
    with pytest.raises(DataError, match="no complete feature store"):
        FeatureStore(store.folder)
    assert contents(FeatureStore.build(few, tmp_path, num_jobs=1)) == good
    assert [path.name for path in tmp_path.iterdir()] == [store.folder.name]


def broken_corpus(manifest: Path, tmp_path: Path, num_broken: int) -> CutSet:
    shutil.copytree(manifest.parent / "audio", tmp_path / "audio")
    cuts = load_manifest(Path(shutil.copy(manifest, tmp_path / "train.jsonl")))
    for index in range(num_broken):
        (tmp_path / "audio" / f"train{index:03d}.wav").write_bytes(b"broken")
    return cuts


def test_unreadable_audio_is_named_and_skipped(manifest: Path, tmp_path: Path) -> None:
    cuts = broken_corpus(manifest, tmp_path, 2)
    store = FeatureStore.build(cuts, tmp_path / "store", num_jobs=1)
    assert [item.id for item in store.skipped] == ["train000", "train001"]
    assert "train000.wav" in store.skipped[0].detail
    assert "train000" not in store
    assert len(store.available(cuts)) == 38


def test_too_much_unreadable_audio_is_an_error(manifest: Path, tmp_path: Path) -> None:
    cuts = broken_corpus(manifest, tmp_path, 3)
    with pytest.raises(DataError, match=r"3 of 40 .* unreadable 3 .*: train000: its .*wav"):
        FeatureStore.build(cuts, tmp_path / "store", num_jobs=1)
    assert list((tmp_path / "store").iterdir()) == []


def test_noise_is_seeded_by_the_utterance(cuts: CutSet, tmp_path: Path) -> None:
    few = cuts.subset(first=10)
    clean = FeatureStore.build(few, tmp_path, num_jobs=1)
    noisy = FeatureStore.build(few, tmp_path, num_jobs=1, noise_probability=0.5)
    alone = FeatureStore.build(cuts.subset(first=1), tmp_path, num_jobs=1, noise_probability=0.5)
    np.testing.assert_array_equal(noisy.frames("train000"), alone.frames("train000"))
    changed = [(clean.frames(c.id) != noisy.frames(c.id)).any() for c in few]
    assert 0 < sum(changed) < 10


def test_unknown_cuts_are_an_error(cuts: CutSet, tmp_path: Path) -> None:
    store = FeatureStore.build(cuts.subset(first=2), tmp_path, num_jobs=1)
    with pytest.raises(ValueError, match="was not built for train002"):
        store.available(cuts)
    with pytest.raises(KeyError):
        store.frames("train002")


def test_an_unwritable_cache_is_one_line(cuts: CutSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write features"):
        FeatureStore.build(cuts, tmp_path / "file" / "cache", num_jobs=1)


def test_no_file_grows_without_bound(
    cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FeatureStore.build(cuts, tmp_path / "one", num_jobs=1)
    monkeypatch.setattr(feature_store, "MAX_FILE_BYTES", 100_000)
    parts = FeatureStore.build(cuts, tmp_path / "several", num_jobs=2)
    sizes = [path.stat().st_size for path in parts.folder.glob("features.*.f16")]
    assert len(sizes) > 3
    assert max(sizes) <= 100_000
    for store in (parts, FeatureStore(parts.folder, in_memory=True)):
        for cut in cuts:
            np.testing.assert_array_equal(store.frames(cut.id), whole.frames(cut.id))
    assert (parts.mean, parts.std) == (whole.mean, whole.std)
    next(parts.folder.glob("features.00001.f16")).write_bytes(b"")
    with pytest.raises(DataError, match="holds no complete feature store"):
        FeatureStore(parts.folder)


def test_a_store_of_before_is_read(cuts: CutSet, tmp_path: Path) -> None:
    store = FeatureStore.build(cuts, tmp_path, num_jobs=1)
    index = json.loads((store.folder / "index.json").read_text())
    assert index.pop("starts") == [0]
    (store.folder / "index.json").write_text(json.dumps(index))
    again = FeatureStore(store.folder)
    np.testing.assert_array_equal(again.frames(cuts[3].id), store.frames(cuts[3].id))
