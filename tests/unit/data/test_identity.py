"""Corpora are told apart by what is heard and written in them, and by nothing else."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from lhotse import CutSet

from omnisparse.data import content
from omnisparse.data.content import ContentCache
from omnisparse.data.corpora import load_manifest
from omnisparse.data.identity import identify


def copy_of(manifest: Path, folder: Path) -> Path:
    shutil.copytree(manifest.parent / "audio", folder / "audio")
    return Path(shutil.copy(manifest, folder / "train.jsonl"))


def rewrite(manifest: Path, change: dict[int, dict[str, object]]) -> CutSet:
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    for index, values in change.items():
        records[index] |= values
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_manifest(manifest)


def test_the_same_corpus_elsewhere_is_the_same(manifest: Path, tmp_path: Path) -> None:
    there = identify(load_manifest(copy_of(manifest, tmp_path / "elsewhere")))
    here = identify(load_manifest(manifest))
    assert there == here
    assert here.differences(there) == []
    assert here.utterances == 40


def test_what_changes_is_named(manifest: Path, tmp_path: Path) -> None:
    corpus = copy_of(manifest, tmp_path / "corpus")
    before = identify(load_manifest(corpus))
    texts = identify(rewrite(corpus, {3: {"text": "other words"}}))
    assert before.differences(texts) == ["other transcripts"]
    audio = corpus.parent / "audio"
    first, second = audio / "train000.wav", audio / "train001.wav"
    first.rename(audio / "x.wav")
    second.rename(first)
    (audio / "x.wav").rename(second)
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    swapped = {0: {"duration": records[1]["duration"]}, 1: {"duration": records[0]["duration"]}}
    (difference,) = texts.differences(identify(rewrite(corpus, swapped)))
    assert difference.startswith("other audio")
    corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:30]))
    assert before.differences(identify(load_manifest(corpus)))[0] == "30 utterances instead of 40"


def test_the_channel_that_is_heard_counts(cuts: CutSet) -> None:
    cut = cuts.subset(first=1)[0].to_dict()
    cut["recording"]["sources"][0]["channels"] = cut["recording"]["channel_ids"] = [0, 1]
    heard = set()
    for channel in (0, 1):
        cut["channel"] = cut["supervisions"][0]["channel"] = channel
        heard.add(identify(CutSet.from_dicts([copy.deepcopy(cut)])).audio)
    assert len(heard) == 2


def test_files_are_read_again_only_when_they_change(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ContentCache(tmp_path / "cache")
    files = [str(path) for path in sorted((manifest.parent / "audio").iterdir())]
    seen: list[str] = []
    digest_file = content.digest_file
    monkeypatch.setattr(content, "digest_file", lambda path: seen.append(path) or digest_file(path))
    monkeypatch.setattr(content, "_SETTLED_NS", 0)
    first = cache.digests(files)
    assert seen == files
    assert ContentCache(tmp_path / "cache").digests(files) == first
    assert seen == files
    os.utime(files[5])
    cache.digests(files)
    assert seen == [*files, files[5]]


@pytest.mark.parametrize("damage", ["garbage", "other version", "a folder"])
def test_a_cache_that_is_of_no_use_costs_time_only(
    manifest: Path, tmp_path: Path, damage: str
) -> None:
    files = [str(path) for path in sorted((manifest.parent / "audio").iterdir())]
    expected = ContentCache(tmp_path / "sound").digests(files)
    path = tmp_path / "cache" / "audio.sqlite"
    if damage == "a folder":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir()
        path.write_bytes(b"no database " * 1000)
    if damage == "other version":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
            database.execute("CREATE TABLE files (a, b)")
    cache = ContentCache(tmp_path / "cache")
    assert cache.digests(files) == expected
    assert (cache.problem is not None) == (damage == "a folder")
