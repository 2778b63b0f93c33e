"""What decoding showed is kept by content: the second reading of a corpus decodes nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnisparse.data import checking, content
from omnisparse.data.corpora import import_corpus, read_manifest
from omnisparse.errors import DataError

RATE = 16000


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that are decoded, with a cache of the test's own."""
    monkeypatch.setenv(content.ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_SETTLED_NS", 0)
    seen: list[str] = []
    decoded = checking.decoded
    monkeypatch.setattr(
        checking, "decoded", lambda path: seen.append(Path(path).name) or decoded(path)
    )
    return seen


def copy_of(manifest: Path, folder: Path) -> Path:
    shutil.copytree(manifest.parent / "audio", folder / "audio")
    return Path(shutil.copy(manifest, folder / "train.jsonl"))


def test_nothing_is_decoded_twice(manifest: Path, tmp_path: Path, decodings: list[str]) -> None:
    corpus = copy_of(manifest, tmp_path / "corpus")
    first = read_manifest(corpus)
    assert len(decodings) == 40
    again = read_manifest(corpus)
    assert [cut.to_dict() for cut in again.cuts] == [cut.to_dict() for cut in first.cuts]
    import_corpus(corpus, tmp_path / "imported")
    read_manifest(tmp_path / "imported" / "train.jsonl.gz")
    read_manifest(copy_of(manifest, tmp_path / "moved"))  # read for its digest, not decoded
    assert len(decodings) == 40
    changed = corpus.parent / "audio" / "train003.wav"
    soundfile.write(changed, np.full(5 * RATE, 0.1), RATE)
    (item,) = read_manifest(corpus).skipped
    assert (item.id, item.reason) == ("train003", "duration-mismatch")
    assert decodings[40:] == ["train003.wav"]


def test_a_bad_verdict_is_kept_and_a_missing_file_is_looked_for(
    manifest: Path, tmp_path: Path, decodings: list[str]
) -> None:
    corpus = copy_of(manifest, tmp_path / "corpus")
    audio = corpus.parent / "audio"
    (audio / "train000.wav").write_bytes(b"broken")
    (audio / "train001.wav").rename(audio / "away.wav")
    for _ in range(2):
        split = read_manifest(corpus)
        assert [item.reason for item in split.skipped] == ["unreadable", "missing"]
    assert len(decodings) == 39
    (audio / "away.wav").rename(audio / "train001.wav")
    assert read_manifest(corpus).num_bad == 1


def test_other_stretches_of_a_known_file_are_listened_to(
    tmp_path: Path, decodings: list[str]
) -> None:
    samples = np.concatenate([np.full(RATE, 0.1), np.zeros(RATE)])
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    source = tmp_path / "a.jsonl"
    for offset in (0.0, 0.0, 1.0, 1.0):
        record = {"audio_filepath": "a.wav", "offset": offset, "duration": 1.0, "text": "a"}
        source.write_text(json.dumps(record))
        if offset == 0.0:
            assert len(read_manifest(source).cuts) == 1
        else:
            with pytest.raises(DataError, match="silent 1"):
                read_manifest(source)
    assert decodings == ["a.wav"] * 2


def test_a_cache_that_cannot_be_kept_is_told(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(content.ENVIRONMENT, str(tmp_path / "file" / "cache"))
    split = read_manifest(manifest)
    assert len(split.cuts) == 40
    (note,) = split.notes
    assert note.startswith(f"facts about audio cannot be stored in {tmp_path / 'file'}")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind users only")
def test_corpora_may_be_read_only(manifest: Path, tmp_path: Path, decodings: list[str]) -> None:
    corpus = copy_of(manifest, tmp_path / "corpus")
    for folder in (corpus.parent, corpus.parent / "audio"):
        folder.chmod(0o555)
    try:
        read_manifest(corpus)
        read_manifest(corpus)
    finally:
        for folder in (corpus.parent, corpus.parent / "audio"):
            folder.chmod(0o755)
    assert len(decodings) == 40


@pytest.mark.parametrize("name", ["cut.flac", "cut.wav", "cut.mp3"])
def test_files_that_end_early_are_bad(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE)
    for index in range(20):
        soundfile.write(tmp_path / f"{index}{name}", noise, RATE)
    cut = tmp_path / f"3{name}"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    records = [{"audio_filepath": f"{index}{name}", "text": "a"} for index in range(20)]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(map(json.dumps, records)))
    (item,) = read_manifest(source).skipped
    assert (item.id, item.reason) == ("3cut", "unreadable")
    assert "of 2.0" not in item.detail
