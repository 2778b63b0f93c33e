"""Import of the four formats, and every kind of bad item."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet, SupervisionSet

from omnisparse.data.audio import read_samples
from omnisparse.data.corpora import import_corpus, load_manifest
from omnisparse.data.formats import detect_format
from omnisparse.data.formats.kaldi import list_kaldi
from omnisparse.errors import DataError

RATE = 16000
SHARED = Path(__file__).resolve().parents[4] / "shared" / "corpora"


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def copy_of(manifest: Path, tmp_path: Path) -> Path:
    shutil.copytree(manifest.parent / "audio", tmp_path / "corpus" / "audio")
    return Path(shutil.copy(manifest, tmp_path / "corpus" / "train.jsonl"))


def append(manifest: Path, **record: object) -> None:
    with manifest.open("a") as file:
        file.write(json.dumps(record) + "\n")


def with_nan() -> np.ndarray:
    samples = np.full(RATE, 0.1, dtype=np.float32)
    samples[5] = np.nan
    return samples


def write_float(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    soundfile.write(path, samples, rate, subtype="FLOAT")


def truncate_flac(path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    soundfile.write(path, noise, RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:9000])


BAD: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "unreadable": lambda path: path.write_bytes(b"RIFF and then nonsense" * 50) and None,
    "header-only": lambda path: write_float(path, np.zeros(0, dtype=np.float32)),
    "not-finite": lambda path: write_float(path, with_nan()),
    "silent": lambda path: write_float(path, np.zeros(RATE, dtype=np.float32)),
    "duration-mismatch": lambda path: write_float(path, np.full(2 * RATE, 0.1, np.float32)),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_audio_is_named_skipped_and_counted(
    reason: str, manifest: Path, tmp_path: Path
) -> None:
    source = copy_of(manifest, tmp_path)
    BAD[reason](source.parent / "audio" / "bad.wav")
    append(source, id="bad", audio_filepath="audio/bad.wav", duration=1.0, text="a")
    result = import_corpus(source, tmp_path / "out")
    assert result["skipped"] == 1
    assert result["reasons"] == {reason: 1}
    assert result["splits"]["train"]["utterances"] == 40
    (item,) = lines(tmp_path / "out" / "skipped.jsonl")
    assert (item["id"], item["reason"], item["split"]) == ("bad", reason, "train")
    assert "bad" not in set(load_manifest(tmp_path / "out" / "train.jsonl.gz").ids)


def test_audio_cut_short_is_bad(manifest: Path, tmp_path: Path) -> None:
    source = copy_of(manifest, tmp_path)
    truncate_flac(source.parent / "audio" / "bad.flac")
    append(source, id="bad", audio_filepath="audio/bad.flac", text="a")
    assert import_corpus(source, tmp_path / "out")["skipped"] == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": None}, "untranscribed"),
        ({}, "untranscribed"),
        ({"id": "train001", "text": "a"}, "duplicate"),
        ({"text": "a", "duration": "long"}, "malformed"),
        ({"text": "a", "offset": 5.0, "duration": 1.0}, "duration-mismatch"),
    ],
)
def test_bad_lines_are_skipped(
    record: dict[str, object], reason: str, manifest: Path, tmp_path: Path
) -> None:
    append(copy_of(manifest, tmp_path), **{"audio_filepath": "audio/train000.wav", **record})
    result = import_corpus(tmp_path / "corpus", tmp_path / "out")
    assert result["reasons"] == {reason: 1}


def test_more_than_five_percent_bad_writes_nothing(manifest: Path, tmp_path: Path) -> None:
    source = copy_of(manifest, tmp_path)
    for index in range(2):
        append(source, id=f"b{index}", audio_filepath=f"no{index}.wav", duration=1.0, text="a")
    assert import_corpus(source, tmp_path / "out")["skipped"] == 2  # 2 of 42
    append(source, id="b2", audio_filepath="no2.wav", duration=1.0, text="a")
    with pytest.raises(DataError, match=r"3 of 43 .* allowed: missing 3 \(b0, b1, b2; the first: "):
        import_corpus(source, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]


def test_files_of_the_user_stay_in_out(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    import_corpus(manifest, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "notes.txt",
        "train.jsonl.gz",
        "skipped.jsonl",
        "import.json",
    }


def test_durations_are_those_of_the_audio(manifest: Path, tmp_path: Path) -> None:
    import_corpus(manifest, tmp_path / "out")
    for cut in load_manifest(tmp_path / "out" / "train.jsonl.gz"):
        samples, _ = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        assert cut.num_samples == len(samples)
        np.testing.assert_array_equal(cut.load_audio()[0], samples)


def test_lhotse_cuts(cuts: CutSet, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    cuts.to_file(tmp_path / "source" / "cuts_train.jsonl.gz")
    cuts.subset(first=5).to_file(tmp_path / "source" / "dev.jsonl")
    assert detect_format(tmp_path / "source") == "lhotse"
    result = import_corpus(tmp_path / "source", tmp_path / "out")
    assert {name: one["utterances"] for name, one in result["splits"].items()} == {
        "train": 40,
        "dev": 5,
    }
    loaded = load_manifest(tmp_path / "out" / "dev.jsonl.gz")
    assert list(loaded.ids) == list(cuts.ids)[:5]


def test_lhotse_recordings_and_supervisions(cuts: CutSet, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    recordings = RecordingSet.from_recordings(cut.recording for cut in cuts)
    supervisions = SupervisionSet.from_segments(cut.supervisions[0] for cut in cuts)
    recordings.to_file(source / "x_recordings_dev.jsonl.gz")
    supervisions.to_file(source / "x_supervisions_dev.jsonl.gz")
    result = import_corpus(source, tmp_path / "out")
    assert result["splits"]["x-dev"]["utterances"] == 40


def test_lhotse_cuts_that_lhotse_changes_are_imported_as_they_are(
    cuts: CutSet, tmp_path: Path
) -> None:
    (faster,) = cuts.subset(first=1).perturb_speed(1.1)
    CutSet.from_cuts([*cuts, faster]).to_file(tmp_path / "train.jsonl")
    result = import_corpus(tmp_path / "train.jsonl", tmp_path / "out")
    assert result["skipped"] == 0
    imported = {cut.id: cut for cut in load_manifest(tmp_path / "out" / "train.jsonl.gz")}
    np.testing.assert_array_equal(read_samples(imported[faster.id]), read_samples(faster))


def kaldi_directory(manifest: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    items = lines(manifest)
    audio = {item["id"]: manifest.parent / item["audio_filepath"] for item in items}
    (folder / "wav.scp").write_text("".join(f"{n} {p}\n" for n, p in audio.items()))
    (folder / "text").write_text("".join(f"{i['id']} {i['text']}\n" for i in items))
    (folder / "utt2spk").write_text("".join(f"{i['id']} {i['speaker']}\n" for i in items))
    return folder


def test_kaldi_directories_are_splits(manifest: Path, tmp_path: Path) -> None:
    for split in ("train", "dev"):
        kaldi_directory(manifest, tmp_path / "data" / split)
    assert detect_format(tmp_path / "data") == "kaldi"
    result = import_corpus(tmp_path / "data", tmp_path / "out")
    assert set(result["splits"]) == {"train", "dev"}
    assert result["splits"]["dev"]["speakers"] == 3


def test_kaldi_segments_pipes_and_gaps(manifest: Path, tmp_path: Path) -> None:
    folder = kaldi_directory(manifest, tmp_path / "train")
    names = [item["id"] for item in lines(manifest)]
    rows = [f"{name} {name} 0.05 0.25\n" for name in names]
    rows[1] = f"{names[1]} {names[1]} 0.25 0.05\n"  # ends before it starts
    (folder / "segments").write_text("".join(rows))
    result = import_corpus(folder, tmp_path / "out")
    assert result["reasons"] == {"malformed": 1}
    cut = next(iter(load_manifest(tmp_path / "out" / "train.jsonl.gz")))
    assert (cut.start, cut.num_samples) == (0.05, 3200)
    for place in ("nan 0.25", "0.05 nan", "-1 0.25", "0.05 inf"):
        (folder / "segments").write_text(f"{names[0]} {names[0]} {place}\n")
        split = list_kaldi(folder, needs_text=True)
        assert [item.reason for item in split.skipped if item.id == names[0]] == ["malformed"]


def test_kaldi_commands_are_never_run(manifest: Path, tmp_path: Path) -> None:
    folder = kaldi_directory(manifest, tmp_path / "train")
    with (folder / "wav.scp").open("a") as file:
        file.write(f"evil touch {tmp_path}/run |\n")
    with (folder / "text").open("a") as file:
        file.write("evil some words\n")
    assert import_corpus(folder, tmp_path / "out")["reasons"] == {"unsupported": 1}
    assert not (tmp_path / "run").exists()


def test_librispeech_subsets_are_splits(manifest: Path, tmp_path: Path) -> None:
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    chapter.mkdir(parents=True)
    texts = []
    for index, item in enumerate(lines(manifest)):
        samples, rate = soundfile.read(manifest.parent / item["audio_filepath"])
        name = f"84-121123-{index:04d}"
        soundfile.write(chapter / f"{name}.flac", samples, rate)
        texts.append(f"{name} {item['text'].upper()}\n")
    (chapter / "84-121123.trans.txt").write_text("".join(texts[:-1]) + "84-121123-9999 GONE\n")
    result = import_corpus(tmp_path / "LibriSpeech", tmp_path / "out")
    assert result["splits"]["dev-clean"] == {
        "utterances": 39,
        "hours": pytest.approx(result["splits"]["dev-clean"]["hours"]),
        "speakers": 1,
    }
    assert result["reasons"] == {"untranscribed": 1, "missing": 1}
    first = next(iter(load_manifest(tmp_path / "out" / "dev-clean.jsonl.gz")))
    assert first.supervisions[0].text.isupper()


def test_two_manifests_of_one_split_are_refused(manifest: Path, tmp_path: Path) -> None:
    copy = copy_of(manifest, tmp_path)
    copy.with_name("train.jsonl.gz").write_bytes(gzip.compress(copy.read_bytes()))
    with pytest.raises(DataError, match=r"train\.jsonl\.gz: a second manifest of the split train"):
        import_corpus(copy.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_sources_and_formats(tmp_path: Path, manifest: Path) -> None:
    with pytest.raises(DataError, match="looks like none of"):
        import_corpus(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        import_corpus(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="format must be one of auto, nemo"):
        import_corpus(manifest, tmp_path / "out", corpus_format="ark")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nothing there to read as kaldi"):
        import_corpus(tmp_path, tmp_path / "out", corpus_format="kaldi")
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="no utterances found"):
        import_corpus(tmp_path / "empty.jsonl.gz", tmp_path / "out", corpus_format="nemo")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared corpora are not here")
def test_a_real_corpus_loses_nothing(tmp_path: Path) -> None:
    result = import_corpus(SHARED / "kathleen" / "dev.jsonl", tmp_path / "out")
    assert result["skipped"] == 0
    assert result["splits"]["dev"]["utterances"] == 79
