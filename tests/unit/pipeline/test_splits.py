"""The splits of a corpus configuration: at the rate of the features, and at which speeds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from omnisparse.config import CorpusConfig, RunConfig
from omnisparse.data.audio import read_samples
from omnisparse.data.augmentation import AugmentationConfig
from omnisparse.data.feature_store import FeatureStore
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline import splits as pipeline
from omnisparse.pipeline.splits import load_splits, synthetic_folder, tell_corpora
from omnisparse.pipeline.training_data import TrainingData
from omnisparse.runs.trained_on import list_utterances, write_utterances
from omnisparse.synthetic.corpus import SyntheticConfig


def corpus_of(manifest: Path) -> CorpusConfig:
    base, name = str(manifest.parent), manifest.name
    return CorpusConfig(synthetic=None, base=base, train=(name,), dev=(name,))


def test_audio_is_brought_to_the_rate_of_the_features(manifest: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    corpus = corpus_of(manifest)
    splits = load_splits(corpus, lines.append, speed_factors=(1.0, 0.9), sampling_rate=8000)
    assert {cut.sampling_rate for cut in (*splits.train, *splits.dev)} == {8000}
    told = f"{manifest}: 40 of 40 utterances have 16000 Hz, resampled to 8000 Hz"
    assert lines == [told] * 2
    slow = next(cut for cut in splits.train if cut.id.endswith("_sp0.9"))
    assert len(read_samples(slow)) == slow.num_samples
    store = FeatureStore.build(splits.train, tmp_path, sampling_rate=8000, num_jobs=1)
    assert len(store) == 80
    lines.clear()
    assert {cut.sampling_rate for cut in load_splits(corpus, lines.append).train} == {16000}
    load_splits(corpus, lines.append, speed_factors=(0.9,), sampling_rate=16000)
    assert lines == []


def embedded(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CorpusConfig:
    """The embedded corpus alone, which is spoken already."""
    monkeypatch.setattr(pipeline, "prepare_synthetic", lambda config, folder: None)
    corpus = CorpusConfig(root=str(tmp_path))
    folder = synthetic_folder(corpus)
    shutil.copytree(manifest.parent / "audio", folder / "audio")
    for split in ("train", "dev"):
        shutil.copy(manifest, folder / f"{split}.jsonl")
    return corpus


def test_the_embedded_corpus_has_other_speeds_where_it_is_alone(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = embedded(manifest, tmp_path, monkeypatch)
    folder = synthetic_folder(corpus)
    lines: list[str] = []
    splits = load_splits(corpus, lines.append, speed_factors=(0.9, 1.0))
    assert len(splits.train) == 80
    assert len(splits.dev) == 40
    assert lines == [f"corpus {folder}"]
    assert len(load_splits(corpus).train) == 40
    beside = replace(
        corpus, synthetic=SyntheticConfig(), base=str(manifest.parent), train=(manifest.name,)
    )
    assert len(load_splits(beside, speed_factors=(0.9, 1.0)).train) == 120


def test_a_run_without_copies_of_the_embedded_corpus_is_not_continued_with_them(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions made none, whatever the speeds."""
    corpus = embedded(manifest, tmp_path, monkeypatch)
    speeds = AugmentationConfig(speed_factors=(0.9, 1.0))
    plain = RunConfig(corpus=corpus)
    config = replace(plain, data=replace(plain.data, augmentation=speeds))
    write_utterances(tmp_path, list_utterances([load_splits(corpus).train]))
    data = TrainingData(config, tmp_path, lambda line: None, accept_changes=False)
    with pytest.raises(OmnisparseError, match=r"training utterances: 40 new \("):
        data.check_finished()
    TrainingData(plain, tmp_path, print, accept_changes=False).check_finished()


def test_a_run_says_what_it_trains_on(manifest: Path) -> None:
    lines: list[str] = []
    tell_corpora(load_splits(corpus_of(manifest)), lines.append)
    size = "40 utterances, 0.01 h, 3 speakers"
    assert lines == [f"trains on {size}: {manifest}", f"dev split: {size}: {manifest}"]
    base, name = str(manifest.parent), manifest.name
    twice = CorpusConfig(base=base, train=(name, name))
    lines.clear()
    tell_corpora(load_splits(twice, speed_factors=(0.9, 1.0)), lines.append)
    assert lines == [
        "trains on 80 utterances, 0.02 h, 3 speakers, of 2 corpora",
        f"  {size}: {manifest}",
        f"  {size}: {manifest}",
        "  with copies at speeds 0.9, 1: 160 utterances in all",
    ]


def test_a_text_is_one_corpus_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "sentences.txt"
    text.write_text("a lamp\nin the hall\n")

    def folder(path: str) -> Path:
        return synthetic_folder(CorpusConfig(synthetic=SyntheticConfig(text=path)))

    first = folder(str(text))
    assert folder("sentences.txt") == folder("./sentences.txt") == first
    text.write_text("a lamp\nin the kitchen\n")
    assert folder(str(text)) != first
    assert folder("gone.txt").name.startswith("books-2h-0-")
