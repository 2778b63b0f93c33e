"""Each kind of item that other tools get wrong in silence: read right, or named, at every entry."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut, MultiCut

from omnisparse.data.audio import read_samples
from omnisparse.data.corpora import ReadSplit, import_corpus, read_manifest
from omnisparse.data.feature_store import FeatureStore
from omnisparse.errors import DataError

RATE = 16000


def noise(seconds: float, seed: int = 0, channels: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    samples = 0.2 * generator.standard_normal((round(seconds * RATE), channels))
    return samples[:, 0] if channels == 1 else samples


def wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def good(folder: Path, count: int = 40) -> list[dict[str, object]]:
    """Sound items, so that one that is not stays below 5 %."""
    records = []
    for index in range(count):
        wav(folder / "good" / f"{index:03d}.wav", noise(0.3, 1000 + index))
        records.append({"audio_filepath": f"good/{index:03d}.wav", "duration": 0.3, "text": "yes"})
    return records


def lines(path: Path, records: Iterable[object], mark: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mark + "".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def both(source: Path, tmp_path: Path) -> tuple[ReadSplit, list[Cut]]:
    """A corpus read directly, which an import must read alike; and what was told of it."""
    direct = read_manifest(source)
    statistics = import_corpus(source, tmp_path / "imported")
    (name,) = statistics["splits"]
    imported = read_manifest(tmp_path / "imported" / f"{name}.jsonl.gz")
    assert statistics["skipped"] == direct.num_bad
    assert imported.num_bad == 0
    assert [cut.id for cut in imported.cuts] == [cut.id for cut in direct.cuts]
    assert [cut.duration for cut in imported.cuts] == [cut.duration for cut in direct.cuts]
    for one, other in zip(direct.cuts, imported.cuts, strict=True):
        assert one.supervisions[0].text == other.supervisions[0].text
        np.testing.assert_array_equal(read_samples(one), read_samples(other))
    return direct, list(direct.cuts)


def by_id(cuts: Iterable[Cut]) -> dict[str, Cut]:
    return {cut.id: cut for cut in cuts}


def test_silence_stays_in_a_test_set(tmp_path: Path) -> None:
    wav(tmp_path / "zeros.wav", np.zeros(RATE))
    silent = {"audio_filepath": "zeros.wav", "duration": 1.0}
    records = [*good(tmp_path), {"audio_filepath": "good/000.wav", "id": "n", "text": " "}]
    source = lines(tmp_path / "test.jsonl", [*records, silent | {"text": ""}])
    split, cuts = both(source, tmp_path)
    assert (len(cuts), split.num_bad) == (42, 0)
    source = lines(tmp_path / "test.jsonl", [*records, silent | {"text": "words"}])
    assert [item.reason for item in both(source, tmp_path)[0].skipped] == ["silent"]


def recording(path: Path, seconds: float, channels: int = 1) -> Recording:
    return Recording(
        id=path.stem,
        sources=[AudioSource("file", list(range(channels)), str(path))],
        sampling_rate=RATE,
        num_samples=round(seconds * RATE),
        duration=seconds,
    )


def cut_of(
    rec: Recording, spans: list[tuple[float, float]], name: str = "c", channel: int = 0
) -> MonoCut:
    supervisions = [
        SupervisionSegment(f"{name}{i}", rec.id, start, length, channel=channel, text="yes")
        for i, (start, length) in enumerate(spans)
    ]
    return MonoCut(name, 0.0, rec.duration, channel, supervisions=supervisions, recording=rec)


def test_the_part_of_the_supervision_is_heard(tmp_path: Path) -> None:
    samples = noise(13.26)
    rec = recording(wav(tmp_path / "a.wav", samples), 13.26)
    source = tmp_path / "test.jsonl"
    CutSet.from_cuts([cut_of(rec, [(3.637, 2.951)])]).to_file(source)
    _, (cut,) = both(source, tmp_path)
    assert cut.duration == pytest.approx(2.951)
    first = round(3.637 * RATE)
    np.testing.assert_array_equal(
        read_samples(cut), samples[first : first + round(2.951 * RATE)].astype(np.float32)
    )
    CutSet.from_cuts([cut_of(rec, [(1.0, 2.0), (4.0, 1.5)])]).to_file(source)
    assert [(c.id, c.duration) for c in both(source, tmp_path)[1]] == [("c0", 2.0), ("c1", 1.5)]


@pytest.mark.parametrize(
    ("span", "heard", "reason"),
    [
        ((-1e-6, 1.0), 1.0, ""),
        ((1.0, 1.01), 1.0, ""),
        ((-0.05, 2.1), 2.0, ""),
        ((0.5, 0.0), 0.0, "empty"),
        ((0.5, -1.0), 0.0, "empty"),
        ((0.5, 3.0), 0.0, "sticks-out"),
        ((2.5, 1.0), 0.0, "sticks-out"),
        ((-1.0, 1.5), 0.0, "sticks-out"),
    ],
)
def test_a_supervision_that_sticks_out_is_clipped_or_named(
    tmp_path: Path, span: tuple[float, float], heard: float, reason: str
) -> None:
    rec = recording(wav(tmp_path / "a.wav", noise(2.0)), 2.0)
    cuts = [cut_of(rec, [(0.0, 2.0)], f"good{index}") for index in range(40)]
    source = tmp_path / "test.jsonl"
    CutSet.from_cuts([*cuts, cut_of(rec, [span], "edge")]).to_file(source)
    split, found = both(source, tmp_path)
    assert [(item.id, item.reason) for item in split.skipped] == [("edge", reason)] * bool(reason)
    if heard:
        assert by_id(found)["edge"].duration == pytest.approx(heard, abs=1e-4)


def test_the_channel_that_is_asked_for_is_heard(tmp_path: Path) -> None:
    samples = noise(1.0, channels=2)
    path = wav(tmp_path / "stereo.wav", samples)
    rec = recording(path, 1.0, channels=2)
    words = SupervisionSegment("s", rec.id, 0.0, 1.0, channel=[1], text="yes")
    multi = MultiCut("m", 0.0, 1.0, [0, 1], supervisions=[words], recording=rec)
    cuts = [multi, cut_of(rec, [(0.0, 1.0)], "left"), cut_of(rec, [(0.0, 1.0)], "right", 1)]
    source = tmp_path / "test.jsonl"
    CutSet.from_cuts(cuts).to_file(source)
    heard = {name: read_samples(cut) for name, cut in by_id(both(source, tmp_path)[1]).items()}
    left, right = samples.astype(np.float32).T
    for name, expected in (("m", right), ("left", left), ("right", right)):
        np.testing.assert_array_equal(heard[name], expected)


def test_channels_of_nemo_and_kaldi(tmp_path: Path) -> None:
    samples = noise(1.0, channels=2)
    wav(tmp_path / "stereo.wav", samples)
    left, right = samples.astype(np.float32).T
    base = {"audio_filepath": "stereo.wav", "duration": 1.0, "text": "yes"}
    asked = [0, 1, [1], [0, 1], "average", None]
    records = [base | {"id": str(i), "channel_selector": one} for i, one in enumerate(asked)]
    source = lines(tmp_path / "test.jsonl", records)
    mean = (left + right) / 2
    split, cuts = both(source, tmp_path)
    for cut, expected in zip(cuts, (left, right, right, mean, mean, mean), strict=True):
        np.testing.assert_allclose(read_samples(cut), expected, atol=1e-7)
    assert "2 utterances are of files with several channels" in split.notes[0]
    folder = tmp_path / "kaldi"
    kaldi(folder, {"r": str(tmp_path / "stereo.wav")}, {"a": "yes", "b": "no"})
    (folder / "segments").write_text("a r 0.25 0.75 0\nb r 0.25 -1 1\n")
    one, other = both(folder, tmp_path)[1]
    np.testing.assert_array_equal(read_samples(one), left[4000:12000])
    np.testing.assert_array_equal(read_samples(other), right[4000:])


def test_a_channel_that_is_not_there_is_named(tmp_path: Path) -> None:
    wav(tmp_path / "mono.wav", noise(1.0))
    record = {"audio_filepath": "mono.wav", "id": "one", "text": "yes", "channel_selector": 1}
    source = lines(tmp_path / "test.jsonl", [*good(tmp_path), record])
    (item,) = both(source, tmp_path)[0].skipped
    assert (item.id, item.reason) == ("one", "no-channel")
    assert item.detail.startswith("no channel 1, the file has 1 (from 0): ")
    rec = recording(tmp_path / "mono.wav", 1.0, channels=2)  # the manifest claims two
    CutSet.from_cuts([cut_of(rec, [(0.0, 1.0)], "right", 1)]).to_file(source)
    with pytest.raises(DataError, match=r"no-channel 1 \(right; "):
        read_manifest(source)


def test_two_mono_sources_of_one_recording(tmp_path: Path) -> None:
    left, right = noise(1.0, 1), noise(1.0, 2)
    rec = recording(wav(tmp_path / "l.wav", left), 1.0)
    rec.sources.append(AudioSource("file", [1], str(wav(tmp_path / "r.wav", right))))
    rec.channel_ids = [0, 1]
    source = tmp_path / "test.jsonl"
    folders = set()
    for channel, expected in enumerate((left, right)):
        CutSet.from_cuts([cut_of(rec, [(0.0, 1.0)], "c", channel)]).to_file(source)
        _, (cut,) = both(source, tmp_path)
        np.testing.assert_array_equal(read_samples(cut), expected.astype(np.float32))
        store = FeatureStore.build(CutSet.from_cuts([cut]), tmp_path / "store", num_jobs=1)
        folders.add(store.folder)
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("record", "heard"),
    [
        ({"offset": 2.5, "duration": 4.0}, None),
        ({"offset": 2.5, "duration": 3.55}, 3.5),
        ({"offset": 2.5, "duration": None}, 3.5),
        ({"offset": 7.0, "duration": 1.0}, None),
        ({"offset": 6.0, "duration": None}, None),
        ({"duration": 5.55}, None),
        ({"duration": 6.45}, None),
        ({"duration": 5.95}, 6.0),
        ({"duration": 6.05}, 6.0),
        ({"duration": None}, 6.0),
    ],
)
def test_times_are_those_of_the_audio(
    tmp_path: Path, record: dict[str, object], heard: float | None
) -> None:
    samples = noise(6.0)
    wav(tmp_path / "a.wav", samples)
    item = {"id": "a", "audio_filepath": "a.wav", "text": "yes", **record}
    split, cuts = both(lines(tmp_path / "test.jsonl", [*good(tmp_path), item]), tmp_path)
    assert ("a" in by_id(cuts)) == (heard is not None) == (split.num_bad == 0)
    if heard is not None:
        found = read_samples(by_id(cuts)["a"])
        np.testing.assert_array_equal(found, samples[-len(found) :].astype(np.float32))
        assert len(found) == round(heard * RATE)


def kaldi(folder: Path, recordings: dict[str, str], texts: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("wav.scp", recordings), ("text", texts)):
        rows = "".join(f"{key} {value}\n" for key, value in table.items())
        (folder / name).write_text(rows, encoding="utf-8")
    return folder


def test_kaldi_tables_are_intersected_and_told(tmp_path: Path) -> None:
    paths = {f"u{i:02d}": str(wav(tmp_path / f"{i}.wav", noise(0.3, i))) for i in range(40)}
    texts = {name: "yes" for name in list(paths)[:20]}
    split, cuts = both(kaldi(tmp_path / "data", paths, texts), tmp_path)
    assert (len(cuts), split.num_bad) == (20, 0)
    assert split.notes[0].startswith("20 of segments or wav.scp have no line in text, left out: u2")
    assert {item.reason for item in split.skipped} == {"outside"}
    assert len((tmp_path / "imported" / "skipped.jsonl").read_text().splitlines()) == 20
    kaldi(tmp_path / "data", paths, {"other": "yes"})
    with pytest.raises(DataError, match=r"40 of segments .*: no utterances found"):
        read_manifest(tmp_path / "data")


PIPES = {
    "/usr/bin/flac -cds {0} |": True,
    "flac -c -d -s {0}|": True,
    "flac --decode --stdout '{0}' |": True,
    "sox {0} -t wav - |": True,
    "sox {0} -t wav -b 16 -r 16k - |": True,
    "ffmpeg -v 8 -i {0} -f wav -ar 16000 -ac 1 - |": True,
    "ffmpeg -i {0} -f wav pipe:1 |": True,
    "sph2pipe -f wav -p -c 1 {0} |": True,
    "cat {0} |": True,
    "flac -cds --skip=1:00 {0} |": False,
    "flac -cs {0} |": False,
    "sox {0} -t wav - speed 0.9 |": False,
    "sox {0} -r 8000 -t wav - |": False,
    "sox -m {0} {0} -t wav - |": False,
    "ffmpeg -ss 1 -i {0} -f wav - |": False,
    "cat {0} | sox - -t wav - |": False,
    "cat {0}; touch {1} |": False,
    "cat $(touch {1}) {0} |": False,
    "python speak.py {0} |": False,
}


@pytest.mark.parametrize("pipe", PIPES)
def test_pipes_that_only_decode_are_read_and_none_is_run(tmp_path: Path, pipe: str) -> None:
    audio = tmp_path / "a b.flac" if "'" in pipe else tmp_path / "a.flac"
    soundfile.write(audio, noise(1.0), RATE)
    table = {"u": pipe.format(audio, tmp_path / "touched")}
    table |= {
        f"g{i}": str(tmp_path / one["audio_filepath"]) for i, one in enumerate(good(tmp_path))
    }
    split, cuts = both(kaldi(tmp_path / "data", table, dict.fromkeys(table, "yes")), tmp_path)
    assert not (tmp_path / "touched").exists()
    if PIPES[pipe]:
        expected, _ = soundfile.read(audio, dtype="float32")
        np.testing.assert_array_equal(read_samples(by_id(cuts)["u"]), expected)
    else:
        (item,) = split.skipped
        assert (item.id, item.reason) == ("u", "unsupported")
        assert "write its output to a file" in item.detail


def test_archives_say_what_to_do(tmp_path: Path) -> None:
    table = {f"u{i}": f"raw.ark:{i}" for i in range(3)}
    with pytest.raises(DataError, match=r"unsupported 3 .*raw\.ark:0: .* `wav-copy scp:wav"):
        read_manifest(kaldi(tmp_path / "data", table, dict.fromkeys(table, "yes")))


def librispeech(root: Path, chapter: str, count: int, *, with_texts: bool = True) -> None:
    folder = root / chapter
    folder.mkdir(parents=True)
    names = [f"{chapter.replace('/', '-')}-{index:04d}" for index in range(count)]
    for index, name in enumerate(names):
        soundfile.write(folder / f"{name}.flac", noise(0.3, index), RATE)
    if with_texts:
        (folder / "x.trans.txt").write_text("".join(f"{name} YES\n" for name in names))


def test_chapters_and_splits_without_transcripts_are_named(tmp_path: Path) -> None:
    root = tmp_path / "LibriSpeech"
    librispeech(root, "train/1/1", 100)
    librispeech(root, "train/1/2", 2, with_texts=False)
    librispeech(root, "blind/2/1", 3, with_texts=False)
    (root / "train/1/1/._x.trans.txt").write_bytes(b"\x00\x05\x16\x07" + b"\xff" * 50)
    (root / "train/1/1/._1.flac").write_bytes(b"no audio")
    told: list[str] = []
    statistics = import_corpus(root, tmp_path / "out", tell=told.append)
    assert statistics["splits"].keys() == {"train"}
    assert statistics["reasons"] == {"untranscribed": 5}
    assert any(line.startswith("blind: no utterance can be used: untranscribed 3") for line in told)
    assert len(both(root / "train", tmp_path)[1]) == 100
    librispeech(root, "test/3/1", 3, with_texts=False)
    with pytest.raises(DataError, match="8 of 108 utterances"):
        import_corpus(root, tmp_path / "out")


def test_nemo_keys_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working = tmp_path / "working"
    samples = noise(1.0)
    wav(working / "wavs" / "a.wav", samples)
    wav(working / "wavs" / "b.wav", noise(1.0, 1))
    beside = noise(1.0, 2)
    wav(tmp_path / "manifests" / "wavs" / "b.wav", beside)
    (tmp_path / "manifests" / "words.txt").write_text("from a file\n")
    records = [
        {"audio_filename": "wavs/a.wav", "duration": 1.0, "normalized_text": "yes"},
        {"audio_filepath": "wavs/b.wav", "duration": 1.0, "text_filepath": "words.txt"},
    ]
    source = lines(tmp_path / "manifests" / "train.json", records)
    monkeypatch.chdir(working)
    one, other = both(source, tmp_path)[1]
    np.testing.assert_array_equal(read_samples(one), samples.astype(np.float32))
    np.testing.assert_array_equal(read_samples(other), beside.astype(np.float32))
    assert [cut.supervisions[0].text for cut in (one, other)] == ["yes", "from a file"]


def test_byte_order_marks(tmp_path: Path) -> None:
    source = lines(tmp_path / "test.jsonl", good(tmp_path, 3), mark="\ufeff")
    assert len(both(source, tmp_path)[1]) == 3
    paths = {f"u{i}": str(tmp_path / "good" / f"00{i}.wav") for i in range(3)}
    folder = kaldi(tmp_path / "data", paths, dict.fromkeys(paths, "yes"))
    (folder / "utt2spk").write_text("".join(f"{name} speaker\n" for name in paths))
    for table in ("wav.scp", "text", "utt2spk"):
        path = folder / table
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    cuts = both(folder, tmp_path)[1]
    assert [cut.id for cut in cuts] == ["u0", "u1", "u2"]
    assert {cut.supervisions[0].speaker for cut in cuts} == {"speaker"}


def test_names_that_would_be_the_same_are_told_apart(tmp_path: Path) -> None:
    wav(tmp_path / "001.wav", noise(1.0, 1))
    soundfile.write(tmp_path / "001.flac", noise(1.0, 2), RATE)
    wav(tmp_path / "long.wav", noise(3.0, 3, channels=2))
    records = [
        {"audio_filepath": "001.wav", "text": "a"},
        {"audio_filepath": "001.flac", "text": "b"},
        *({"audio_filepath": "long.wav", "text": "c", **one} for one in SPANS),
    ]
    _, cuts = both(lines(tmp_path / "test.jsonl", records), tmp_path)
    names = [cut.id for cut in cuts]
    assert len(set(names)) == len(records)
    assert names[:2] == ["001.wav", "001.flac"]
    assert "long@2.500" in names


SPANS = (
    {"offset": 1.0001, "duration": 0.5},
    {"offset": 1.0004, "duration": 0.5},
    {"offset": 1.0004, "duration": 0.6},
    {"offset": 2.5, "duration": 0.5},
    {"offset": 0.0, "duration": 0.5, "channel_selector": 0},
    {"offset": 0.0, "duration": 0.5, "channel_selector": 1},
)


CODECS = {
    "variable.mp3": {"format": "MP3", "bitrate_mode": "VARIABLE"},
    "constant.mp3": {"format": "MP3", "bitrate_mode": "CONSTANT"},
    "a.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "a.flac": {"format": "FLAC"},
    "gsm.wav": {"format": "WAV", "subtype": "GSM610"},
    "adpcm.wav": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "a.au": {"format": "AU", "subtype": "G721_32"},
}


@pytest.mark.parametrize("name", CODECS)
def test_stretches_equal_those_of_the_whole_file(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    time = np.arange(8 * RATE) / RATE
    # Loud and quiet: frames of an MP3 that borrow bits from those before.
    tone = np.sin(2 * np.pi * (200 + 100 * np.sin(time)) * time) * (np.sin(3 * time) > 0)
    samples = 0.3 * tone + 0.25 * noise(8.0) * (np.cos(time) > 0)
    soundfile.write(tmp_path / name, samples, RATE, **CODECS[name])
    whole = read_samples(
        read_manifest(
            lines(tmp_path / "whole.jsonl", [{"audio_filepath": name, "text": "all"}])
        ).cuts[0]
    )
    offsets = [5.3217, 0.0, 2.5, 2.5001]
    records = [
        {"audio_filepath": name, "offset": one, "duration": 1.5, "text": "part"} for one in offsets
    ]
    _, cuts = both(lines(tmp_path / "parts.jsonl", records), tmp_path)
    for offset, cut in zip(offsets, cuts, strict=True):
        first = round(offset * RATE)
        np.testing.assert_allclose(
            read_samples(cut), whole[first : first + 24000], rtol=0, atol=1e-6
        )
    assert capfd.readouterr().err == ""


def test_normalization_is_asked_for_counted_and_recorded(tmp_path: Path) -> None:
    texts = ["Cafe\u0301, \u201cna\u00efve\u201d!", "DON\u2019T  stop", "...", "plain"]
    for index in range(len(texts)):
        wav(tmp_path / f"{index}.wav", noise(0.3, index))
    records = [{"audio_filepath": f"{i}.wav", "text": text} for i, text in enumerate(texts)]
    source = lines(tmp_path / "test.jsonl", records)
    told: list[str] = []
    rules = ("nfc", "lower", "punctuation")
    import_corpus(source, tmp_path / "out", rules=rules, tell=told.append)
    imported = read_manifest(tmp_path / "out" / "test.jsonl.gz").cuts
    assert [cut.supervisions[0].text for cut in imported] == [
        *("caf\u00e9 na\u00efve", "don't stop", "", "plain"),
    ]
    assert told == [
        "transcripts normalized (nfc, lower, punctuation): 3 of 4 changed; 1 have no word left"
    ]
    record = json.loads((tmp_path / "out" / "import.json").read_text())
    assert record["normalize"] == list(rules)
    as_given = [cut.supervisions[0].text for cut in read_manifest(source).cuts]
    assert as_given == texts
