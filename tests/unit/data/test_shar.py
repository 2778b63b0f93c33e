"""Shards: written, read by lhotse and by us, damaged, and as a stranger may send them."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from lhotse import CutSet
from lhotse.utils import fastcopy

from omnisparse.cli.main import verbs
from omnisparse.data import checking
from omnisparse.data.audio import read_samples
from omnisparse.data.content import ContentCache
from omnisparse.data.corpora import load_manifest, perturb_speed, read_corpus, resample
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.identity import identify
from omnisparse.data.members import parse_member
from omnisparse.data.sharding import Codec, encode, shard_corpus
from omnisparse.errors import DataError


@pytest.fixture(scope="module")
def shards(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    shard_corpus(manifest, out, shard_size=15)
    return out / "train"


def same(one: CutSet, other: CutSet) -> None:
    assert [cut.id for cut in one] == [cut.id for cut in other]
    for left, right in zip(one, other, strict=True):
        assert left.duration == right.duration
        (spoken,), (also,) = left.supervisions, right.supervisions
        assert (spoken.text, spoken.speaker) == (also.text, also.speaker)
        np.testing.assert_array_equal(read_samples(left), read_samples(right))


# lhotse leaves the archives that it reads open.
leaks = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def copied(shards: Path, folder: Path, *, with_index: bool = True) -> Path:
    """A copy of shards that a test may damage."""
    target = folder / "train"
    target.mkdir(parents=True)
    for path in shards.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    if with_index:
        index = shards.parent / "train.index.jsonl.gz"
        (folder / index.name).write_bytes(index.read_bytes())
    return target


def rewrite_cuts(path: Path, change: Any) -> None:
    """Change every line of a manifest of a shard."""
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    path.write_bytes(gzip.compress("".join(json.dumps(change(x)) + "\n" for x in lines).encode()))


def test_shards_hold_the_same_sound_and_words(
    shards: Path, cuts: CutSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(checking, "_decode", None)  # the index has judged them
        loaded = load_manifest(shards)
    same(loaded, cuts)
    assert len(list(shards.glob("recording.*.tar"))) == 3
    about = json.loads((shards.parent / "shards.json").read_text())
    assert (about["shards"], about["utterances"], about["skipped"]) == (3, 40, 0)
    assert about["hours"] == pytest.approx(sum(cut.duration for cut in cuts) / 3600)


@leaks
def test_lhotse_reads_them(shards: Path, cuts: CutSet) -> None:
    theirs = CutSet.from_shar(in_dir=str(shards))
    for cut, other in zip(cuts, theirs, strict=True):
        assert (cut.id, cut.supervisions[0].text) == (other.id, other.supervisions[0].text)
        np.testing.assert_array_equal(read_samples(cut), other.load_audio()[0])


@pytest.mark.parametrize("codec", ["flac", "wav"])
def test_shards_of_lhotse_are_read(codec: str, cuts: CutSet, tmp_path: Path) -> None:
    whole = list(cuts)
    part = whole[3].truncate(offset=0.1, duration=0.15)
    part.supervisions = [fastcopy(part.supervisions[0], start=0.0, duration=0.15)]
    CutSet.from_cuts([*whole[:3], part]).to_shar(tmp_path, {"recording": codec}, shard_size=3)
    loaded = load_manifest(tmp_path)
    assert [cut.id for cut in loaded] == [cut.id for cut in (*whole[:3], part)]
    for cut, other in zip((*whole[:3], part), loaded, strict=True):
        np.testing.assert_array_equal(read_samples(cut), read_samples(other))


def test_changes_of_speed_and_rate_are_those_of_files(shards: Path, cuts: CutSet) -> None:
    loaded = load_manifest(shards)
    changed, expected = (
        perturb_speed(resample(one.subset(first=2), 12000), (0.9,)) for one in (loaded, cuts)
    )
    same(changed, expected)


def test_identity_is_by_content(shards: Path, tmp_path: Path) -> None:
    elsewhere = load_manifest(copied(shards, tmp_path))
    here = load_manifest(shards)
    assert identify(here, ContentCache(tmp_path / "a")) == identify(elsewhere)
    source = elsewhere[0].recording.sources[0].source
    member = parse_member(source)
    assert member is not None
    assert str(member) == source


@leaks
def test_features_are_written_for_other_tools(manifest: Path, tmp_path: Path) -> None:
    shard_corpus(manifest, tmp_path / "out", num_bins=40)
    cut = next(iter(CutSet.from_shar(in_dir=str(tmp_path / "out" / "train"))))
    extractor = FeatureExtractor(num_bins=40, stack=1)
    expected = extractor.fbank(cut.load_audio()[0])
    np.testing.assert_array_equal(cut.load_features(), expected)
    assert len(load_manifest(tmp_path / "out" / "train")) == 40


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("codec", ["flac", "wav"])
def test_nothing_of_whole_numbers_is_lost(bits: int, codec: Codec) -> None:
    scale = 2 ** (bits - 1)
    values = np.random.default_rng(bits).integers(-scale, scale, 5000)
    samples = (values / scale).astype(np.float32)
    back, rate = soundfile.read(io.BytesIO(encode(samples, 16000, codec)), dtype="float32")
    np.testing.assert_array_equal(back, samples)
    assert rate == 16000


def test_floats_are_kept_by_wav_and_rounded_by_flac() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    exact, _ = soundfile.read(io.BytesIO(encode(samples, 16000, "wav")), dtype="float32")
    rounded, _ = soundfile.read(io.BytesIO(encode(samples, 16000, "flac")), dtype="float32")
    np.testing.assert_array_equal(exact, samples)
    assert 0 < np.abs(rounded - samples).max() <= 2**-16


@pytest.mark.parametrize("codec", ["opus", "mp3"])
def test_lossy_codecs_keep_lengths_and_most_of_the_sound(
    codec: Codec, write_corpus: Any, tmp_path: Path
) -> None:
    manifest = write_corpus(tmp_path / "c", 3)
    shard_corpus(manifest, tmp_path / "out", codec=codec)
    loaded = load_manifest(tmp_path / "out" / "train")
    for cut, other in zip(load_manifest(manifest), loaded, strict=True):
        assert other.duration == cut.duration
        assert np.corrcoef(read_samples(cut), read_samples(other))[0, 1] > 0.9


def test_a_rate_that_a_codec_does_not_know_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(11025, np.float32) / 2, 11025)
    line = {"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match="opus cannot keep 11025 Hz; legal: 8000"):
        shard_corpus(tmp_path / "m.jsonl", tmp_path / "out", codec="opus")
    shard_corpus(tmp_path / "m.jsonl", tmp_path / "out", codec="opus", sampling_rate=16000)
    assert load_manifest(tmp_path / "out" / "m")[0].num_samples == 16000


def test_several_splits_are_several_folders(
    write_corpus: Any, shards: Path, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "c", 3, "train")
    write_corpus(tmp_path / "c", 2, "dev")
    shard_corpus(tmp_path / "c", tmp_path / "out")
    assert {name: len(one.cuts) for name, one in read_corpus(tmp_path / "out").items()} == {
        "train": 3,
        "dev": 2,
    }
    # Shards are a corpus, to be written anew in other shards.
    shard_corpus(shards, tmp_path / "again", shard_size=7)
    same(load_manifest(tmp_path / "again" / "train"), load_manifest(shards))


def test_a_changed_byte_is_an_error_and_never_other_sound(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path)
    cut = load_manifest(folder)[0]
    member = parse_member(cut.recording.sources[0].source)
    assert member is not None
    damaged = bytearray(Path(member.tar).read_bytes())
    damaged[member.offset + member.size // 2] ^= 1
    Path(member.tar).write_bytes(damaged)
    with pytest.raises(DataError, match="the archive is damaged, or another one"):
        read_samples(cut)


@pytest.mark.parametrize("with_index", [True, False])
def test_archives_cut_short_are_refused(shards: Path, tmp_path: Path, with_index: bool) -> None:
    folder = copied(shards, tmp_path, with_index=with_index)
    tar = folder / "recording.000001.tar"
    tar.write_bytes(tar.read_bytes()[: 3 * 10240 // 2])
    with pytest.raises(DataError, match=r"recording\.000001\.tar: .*(cut short|damaged)"):
        load_manifest(folder)


def test_cuts_beside_other_audio_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path)
    (folder / "cuts.000001.jsonl.gz").write_bytes((shards / "cuts.000000.jsonl.gz").read_bytes())
    with pytest.raises(DataError, match="cuts and audio are of different shards"):
        load_manifest(folder)


def test_more_cuts_than_audio_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path, with_index=False)
    manifest = folder / "cuts.000002.jsonl.gz"
    whole = gzip.decompress(manifest.read_bytes())
    manifest.write_bytes(gzip.compress(whole + whole))
    with pytest.raises(DataError, match="lists more utterances than it holds"):
        load_manifest(folder)
    manifest.write_bytes(gzip.compress(b"".join(whole.splitlines(keepends=True)[:4])))
    with pytest.raises(DataError, match="holds more audio than"):
        load_manifest(folder)
    (folder / "recording.000002.tar").unlink()
    with pytest.raises(DataError, match="has no audio beside it"):
        load_manifest(folder)


def test_an_index_that_is_not_of_these_shards_is_not_believed(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path)
    rewrite_cuts(folder / "cuts.000000.jsonl.gz", lambda cut: cut | {"custom": {"a": 1}})
    (split,) = read_corpus(folder).values()
    assert len(split.cuts) == 40
    assert any("1 of 3 shards have changed" in note for note in split.notes)
    index = tmp_path / "train.index.jsonl.gz"
    with gzip.open(index, "wt") as file:
        file.write(json.dumps({"format": "omnisparse-shards", "version": 1}) + "\n")
        file.write(json.dumps({"tar": "recording.000000.tar", "ids": 3}) + "\n")
    (split,) = read_corpus(folder).values()
    assert any("is not believed" in note for note in split.notes)
    assert len(split.cuts) == 40


def test_no_command_of_a_stranger_is_run(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path, with_index=False)
    trap = tmp_path / "trap"
    evil = {"type": "command", "channels": [0], "source": f"touch {trap}; cat /dev/null"}

    def poisoned(cut: dict[str, Any]) -> dict[str, Any]:
        return cut | {"recording": cut["recording"] | {"sources": [evil]}}

    for path in folder.glob("cuts.*"):
        rewrite_cuts(path, poisoned)
    tar = folder / "recording.000000.tar"
    with tarfile.open(tar) as archive:
        files = [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]
    with tarfile.open(tar, "w") as archive:
        for name, content in files:
            if name.endswith(".json"):
                content = json.dumps(json.loads(content) | {"sources": [evil]}).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    loaded = load_manifest(folder)
    assert [read_samples(cut).size > 0 for cut in loaded] == [True] * 40
    read_samples(resample(loaded.subset(first=1), 8000)[0])
    assert not trap.exists()


def test_a_corpus_that_is_no_shards_is_not_replaced(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(DataError, match="holds no shards of ours"):
        shard_corpus(manifest, tmp_path / "mine")
    assert (tmp_path / "mine" / "precious").exists()
    shard_corpus(manifest, tmp_path / "out", shard_size=10)
    shard_corpus(manifest, tmp_path / "out", shard_size=40)
    assert len(list((tmp_path / "out" / "train").glob("recording*"))) == 1  # nothing is left over


def _write_slowly(manifest: Path, out: Path, ready: Any) -> None:
    def stop(done: int, total: int) -> None:
        if any(out.parent.glob(".out.tmp-*/train/recording.000002.tar")):
            ready.set()
            time.sleep(60)

    shard_corpus(manifest, out, shard_size=5, progress=stop)


def test_a_killed_writer_leaves_nothing_half_written(manifest: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_write_slowly, args=(manifest, tmp_path / "out", ready))
    process.start()
    assert ready.wait(30)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.tmp-*"))
    shard_corpus(manifest, tmp_path / "out")
    assert not list(tmp_path.glob(".out.tmp-*"))


def test_the_command_says_what_it_wrote(manifest: Path, tmp_path: Path) -> None:
    arguments = ["prepare", "shard", str(manifest), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(verbs, [*arguments, "--shard-size", "20"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["shards"], report["utterances"]) == (2, 40)
    assert report["splits"]["train"]["hours"] == report["hours"] > 0
