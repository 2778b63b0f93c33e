"""`prepare import --split`: shares are met, and no voice is on two sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from omnisparse.data.corpora import import_corpus, load_manifest
from omnisparse.data.splitting import parse_shares, split_cuts
from omnisparse.errors import DataError, UsageError

THREE = {"train": 0.9, "dev": 0.05, "test": 0.05}


def cut(name: str, speaker: str | None, seconds: float = 1.0, file: str | None = None) -> MonoCut:
    samples = round(16000 * seconds)
    recording = Recording(
        id=name, sources=[AudioSource("file", [0], file or f"{name}.wav")], sampling_rate=16000,
        num_samples=samples, duration=samples / 16000,
    )  # fmt: skip
    said = SupervisionSegment(name, name, 0.0, samples / 16000, text="a", speaker=speaker)
    return MonoCut(
        name, start=0.0, duration=samples / 16000, channel=0, supervisions=[said],
        recording=recording,
    )  # fmt: skip


def speakers_of(cuts: list[MonoCut]) -> set[str | None]:
    return {one.supervisions[0].speaker for one in cuts}


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 30), min_size=3, max_size=40),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_no_voice_is_on_two_sides(counts: list[int], unnamed: int, seed: int) -> None:
    cuts = [cut(f"{v}-{n}", f"voice {v}") for v, count in enumerate(counts) for n in range(count)]
    cuts += [cut(f"x-{n}", None) for n in range(unnamed)]
    found = split_cuts(cuts, THREE, seed=seed)
    assert found.by == "speaker"
    sides = [speakers_of(part) for part in found.cuts.values()]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert sorted(c.id for part in found.cuts.values() for c in part) == sorted(c.id for c in cuts)
    assert None not in sides[1] | sides[2]
    assert bool(found.notes) == bool(unnamed)
    # Whatever the order of the utterances.
    again = split_cuts(cuts[::-1], THREE, seed=seed)
    assert [speakers_of(part) for part in again.cuts.values()] == sides


def test_shares_are_met_within_a_voice() -> None:
    cuts = [cut(f"{v}-{n}", f"v{v}") for v in range(100) for n in range(1 + v % 4)]
    for seed in range(5):
        parts = split_cuts(cuts, THREE, seed=seed).cuts
        for name, share in THREE.items():
            assert abs(len(parts[name]) - share * len(cuts)) <= 4, (name, seed)
    assert len({str(split_cuts(cuts, THREE, seed=s).cuts["test"]) for s in range(5)}) > 1


def test_what_cannot_be_is_said() -> None:
    two = [cut(f"{n}", f"voice {n % 2}", file=f"{n // 4}.wav") for n in range(40)]
    found = split_cuts(two, THREE)
    assert found.by == "recording"
    assert found.notes == (
        "2 speakers are named: split by recording, so one voice may be in several splits",
    )
    files = [{c.recording.sources[0].source for c in part} for part in found.cuts.values()]
    assert all(files)
    assert sum(map(len, files)) == 10
    one_file = [cut(f"{n}", None, file="long.wav") for n in range(40)]
    found = split_cuts(one_file, THREE)
    assert found.by == "utterance"
    assert "no speakers are named" in found.notes[0]
    assert [len(part) for part in found.cuts.values()] == [36, 2, 2]
    with pytest.raises(DataError, match="2 utterances cannot be divided into 3"):
        split_cuts(two[:2], THREE)


@pytest.mark.parametrize(
    "text", ["90", "90/5/4", "90/0/10", "-10/60/50", "a/b/c", "", "50/20/20/10", "nan/50/50"]
)
def test_texts_that_are_no_split(text: str) -> None:
    with pytest.raises(UsageError, match="legal: shares of train, dev and test such as 90/5/5"):
        parse_shares(text)
    assert parse_shares("80/20") == {"train": 0.8, "test": 0.2}


def test_import_divides_a_corpus_without_splits(manifest: Path, tmp_path: Path) -> None:
    result = import_corpus(manifest, tmp_path / "out", split="60/20/20", seed=1)
    assert list(result["splits"]) == ["train", "dev", "test"]
    assert sum(one["utterances"] for one in result["splits"].values()) == 40
    assert (result["split_by"], result["notes"]) == ("speaker", [])
    sides = [
        speakers_of(list(load_manifest(tmp_path / "out" / f"{name}.jsonl.gz")))
        for name in result["splits"]
    ]
    assert sum(map(len, sides)) == len(set().union(*sides))
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(
                json.dumps(
                    {**item, "audio_filepath": str(manifest.parent / item["audio_filepath"])}
                )
                + "\n"
                for item in map(json.loads, manifest.read_text().splitlines())
            )
        )
    with pytest.raises(DataError, match=r"already has the splits .*dev.*; leave --split out"):
        import_corpus(tmp_path, tmp_path / "other", split="90/5/5")
    assert not (tmp_path / "other").exists()
