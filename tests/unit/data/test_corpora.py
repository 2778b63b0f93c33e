"""Manifests: read without opening audio, and refused with a name where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.cut import Cut

from omnisparse.data.audio import read_samples
from omnisparse.data.corpora import (
    load_manifest,
    perturb_speed,
    split_statistics,
    write_nemo_manifest,
)
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.features import FeatureExtractor
from omnisparse.errors import DataError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "corpora"


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_nemo_paths_are_relative_to_the_manifest(cuts: CutSet, manifest: Path) -> None:
    assert len(cuts) == 40
    first = next(iter(cuts))
    assert first.id == "train000"
    assert first.supervisions[0].speaker == "speaker0"
    assert Path(first.recording.sources[0].source).is_relative_to(manifest.parent)
    assert abs(first.load_audio().shape[1] / 16000 - first.duration) < 1e-6


def test_cuts_and_nemo_are_told_apart_by_content(cuts: CutSet, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz"):
        cuts.to_file(tmp_path / name)
        again = load_manifest(tmp_path / name)
        assert [cut.to_dict() for cut in again] == [cut.to_dict() for cut in cuts]


def test_relative_paths_of_cuts_are_relative_to_the_manifest(manifest: Path) -> None:
    path = manifest.parent / "relative.jsonl"
    relative = []
    for cut in load_manifest(manifest):
        record = cut.to_dict()
        source = record["recording"]["sources"][0]
        source["source"] = str(Path(source["source"]).relative_to(manifest.parent))
        relative.append(record)
    write_lines(path, *relative)
    assert all(Path(c.recording.sources[0].source).is_file() for c in load_manifest(path))


def mixed_record(cut: Cut, folder: Path) -> dict[str, Any]:
    """A padded cut with relative paths: two tracks, the second of them silence."""
    record: dict[str, Any] = cut.pad(duration=cut.duration + 1, preserve_id=True).to_dict()
    source = record["tracks"][0]["cut"]["recording"]["sources"][0]
    source["source"] = str(Path(source["source"]).relative_to(folder))
    return record


def test_of_mixed_cuts_the_part_of_the_supervision_is_heard(
    cuts: CutSet, manifest: Path, tmp_path: Path
) -> None:
    whole, other = list(cuts)[:2]
    record = mixed_record(whole, manifest.parent)
    (padded,) = load_manifest(write_lines(manifest.parent / "padded.jsonl", record))
    assert (read_samples(padded) == read_samples(whole)).all()
    mixed = whole.mix(other.drop_supervisions(), offset_other_by=0.1, snr=10).with_id("mixed")
    path = write_lines(tmp_path / "mixed.jsonl", mixed.to_dict())
    (heard,) = loaded = load_manifest(path)
    assert heard.supervisions[0].text == whole.supervisions[0].text
    assert read_samples(heard).shape == (whole.num_samples,)
    assert (read_samples(heard) == read_samples(mixed)[: whole.num_samples]).all()
    store = FeatureStore.build(loaded, tmp_path / "store", num_jobs=1)
    assert store.num_frames("mixed") == FeatureExtractor().num_frames(whole.num_samples)
    with pytest.raises(DataError, match="not one untransformed audio file"):
        write_nemo_manifest(loaded, tmp_path / "nemo.jsonl")
    with pytest.raises(DataError, match=r"missing 1 \(train000; .*train000\.wav"):
        load_manifest(write_lines(tmp_path / "lost.jsonl", record))


@pytest.mark.parametrize("kind", ["command", "url"])
@pytest.mark.parametrize("where", ["recording", "track", "reverberation"])
def test_nothing_that_a_manifest_names_is_run(
    cuts: CutSet, manifest: Path, tmp_path: Path, kind: str, where: str
) -> None:
    whole = next(iter(cuts))
    evil = {"type": kind, "channels": [0], "source": f"touch {tmp_path}/run; cat x.wav"}
    if where == "recording":
        record = whole.to_dict()
        record["recording"]["sources"] = [evil]
    elif where == "track":
        record = mixed_record(whole, manifest.parent)
        record["tracks"][0]["cut"]["recording"]["sources"] = [evil]
    else:
        record = whole.to_dict()
        response = whole.recording.to_dict() | {"sources": [evil]}
        reverb = {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": response}}
        record["recording"]["transforms"] = [reverb]
    path = write_lines(tmp_path / "evil.jsonl", record)
    with pytest.raises(DataError, match=rf"train000; .*: audio of the type '{kind}'"):
        load_manifest(path)
    assert not (tmp_path / "run").exists()


def test_a_segment_may_begin_at_the_start_of_a_longer_file(cuts: CutSet, manifest: Path) -> None:
    whole = next(iter(cuts))
    for offset, first in ((0.0, 0), (0.0005, 8)):
        record = {"audio_filepath": "audio/train000.wav", "duration": 0.2, "text": "a"}
        path = write_lines(manifest.parent / "start.jsonl", record | {"offset": offset})
        (cut,) = cuts_read = load_manifest(path)
        assert (read_samples(cut) == read_samples(whole)[first : first + 3200]).all()
        (slow,) = perturb_speed(cuts_read, (0.9,))
        assert len(read_samples(slow)) == slow.num_samples == round(3200 / 0.9)
        write_nemo_manifest(cuts_read, path)
        assert [cut.to_dict() for cut in load_manifest(path)] == [cut.to_dict()]
    path = write_lines(path, record | {"offset": 0.0, "duration": whole.duration + 1})
    with pytest.raises(DataError, match=r"duration-mismatch 1 \(audio/train000@0\.000; "):
        load_manifest(path)


def test_every_file_has_its_own_rate(tmp_path: Path) -> None:
    records = []
    for index, rate in enumerate((16000, 8000, 8000, 44101)):
        soundfile.write(tmp_path / f"{index}.wav", np.full(rate // 2, 0.1), rate)
        records.append({"audio_filepath": f"{index}.wav", "duration": 0.5, "text": "a"})
    path = write_lines(tmp_path / "a.jsonl", *records)
    told: list[str] = []
    loaded = list(load_manifest(path, sampling_rate=16000, tell=told.append))
    assert [cut.sampling_rate for cut in loaded] == [16000, 8000, 8000, 44101]
    assert [len(read_samples(cut, 16000)) for cut in loaded] == [8000] * 4
    assert [line.removeprefix(f"{path}: ") for line in told] == [
        "2 of 4 utterances have 8000 Hz, resampled to 16000 Hz; narrow-band: nothing above 4000 Hz "
        "is in them",
        "1 of 4 utterances have 44101 Hz, resampled to 16000 Hz",
    ]


def test_an_id_of_null_is_none(manifest: Path) -> None:
    path = manifest.parent / "null.jsonl"
    other = {"id": None, "duration": None}
    others = (GOOD | other, GOOD | other | {"audio_filepath": "audio/train001.wav"})
    assert list(load_manifest(write_lines(path, *others)).ids) == [
        "audio/train000",
        "audio/train001",
    ]


def test_offset_selects_a_stretch(cuts: CutSet, manifest: Path) -> None:
    whole = next(iter(cuts))
    record = {"audio_filepath": "audio/train000.wav", "offset": 0.1, "duration": 0.2, "text": "a"}
    loaded = load_manifest(write_lines(manifest.parent / "offset.jsonl", record))
    cut = next(iter(loaded))
    assert cut.id == "audio/train000@0.100"
    assert (cut.load_audio() == whole.load_audio()[:, 1600:4800]).all()


def test_nemo_round_trip(cuts: CutSet, manifest: Path) -> None:
    path = manifest.parent / "again.jsonl"
    write_nemo_manifest(cuts, path)
    assert json.loads(path.read_text().splitlines()[0])["audio_filepath"] == "audio/train000.wav"
    assert [cut.to_dict() for cut in load_manifest(path)] == [cut.to_dict() for cut in cuts]


GOOD = {"audio_filepath": "audio/train000.wav", "text": "a"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], r"malformed 1 \(bad.jsonl:2; the first: not a JSON object"),
        ({"duration": 1.0, "text": "a"}, r"malformed 1 \(bad.jsonl:2; the first: no audio_filep"),
        (GOOD | {"id": "b", "duration": -1}, "bad.jsonl:2; the first: duration must be a number"),
        (GOOD | {"id": "b", "duration": float("nan")}, "bad.jsonl:2; the first: duration must"),
        (GOOD | {"id": "b", "text": 3}, "bad.jsonl:2; the first: text must be a string, got '3'"),
        (GOOD | {"audio_filepath": "no.wav"}, r"missing 1 \(no; .*no\.wav"),
        (GOOD, "duplicate 1"),
        (GOOD | {"id": "a", "channel_selector": 3}, r"no-channel 1 \(a; the first: no channel 3, "),
    ],
)
def test_bad_lines_are_named(manifest: Path, record: object, message: str) -> None:
    path = write_lines(manifest.parent / "bad.jsonl", GOOD, record)
    with pytest.raises(DataError, match=r"1 of 2 utterances \(50\.0 %\) are bad.*" + message):
        load_manifest(path)
    good = [{"audio_filepath": f"audio/train{index:03d}.wav", "text": "a"} for index in range(40)]
    path = write_lines(manifest.parent / "mostly.jsonl", *good, record)
    told: list[str] = []
    assert len(load_manifest(path, tell=told.append)) == 40
    assert "1 of 41 utterances are bad, left out: " in told[0]


def test_what_is_no_manifest_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="looks like none of"):
        load_manifest(tmp_path)
    for name, content, said in (
        ("a.jsonl", b"hello\n", "looks like none"),
        ("b.jsonl", b"", "is empty"),
        ("c.jsonl", b'{"a": 1}\n', "looks like none"),
        ("f.jsonl", b"\n \n", "is empty"),
        ("g.jsonl", b"[" * 100_000, "looks like none"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said):
            load_manifest(tmp_path / name)
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="cannot read"):
        load_manifest(tmp_path / "d.jsonl")
    (tmp_path / "e.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot read"):
        load_manifest(tmp_path / "e.jsonl.gz")


def test_speed_copies(cuts: CutSet) -> None:
    copies = perturb_speed(cuts, (0.9, 1.0, 1.1))
    assert len(copies) == 120
    by_id = {cut.id: cut for cut in copies}
    assert by_id["train000_sp0.9"].duration > by_id["train000"].duration
    assert by_id["train000"].duration > by_id["train000_sp1.1"].duration
    assert by_id["train000_sp1.1"].supervisions[0].text == by_id["train000"].supervisions[0].text
    with pytest.raises(ValueError, match="speed_factors"):
        perturb_speed(cuts, (1.0, 1.0))


def test_statistics(cuts: CutSet) -> None:
    statistics = split_statistics(cuts)
    assert statistics["utterances"] == 40
    assert statistics["speakers"] == 3
    assert statistics["hours"] == pytest.approx(sum(cut.duration for cut in cuts) / 3600)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared corpora are not here")
def test_real_corpora_load() -> None:
    for corpus in ("an4", "kathleen"):  # small ones: every file is decoded
        path = SHARED / corpus / "dev.jsonl"
        told: list[str] = []
        assert len(load_manifest(path, tell=told.append)) == len(path.read_text().splitlines())
        assert told == []
