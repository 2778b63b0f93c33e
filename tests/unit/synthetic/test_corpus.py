"""The embedded corpus as a whole: splits, reproducibility, refusals."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from omnisparse.errors import DataError
from omnisparse.synthetic import corpus as synthetic
from omnisparse.synthetic.corpus import SyntheticConfig, prepare_synthetic, split_hours
from omnisparse.synthetic.text import SPLITS

SMALL = 0.01


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _manifest(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("synthetic") / "corpus"
    return out, prepare_synthetic(SyntheticConfig(hours=SMALL, seed=7), out)


def test_statistics_are_those_of_the_files(corpus: tuple[Path, dict[str, Any]]) -> None:
    out, statistics = corpus
    assert set(statistics["splits"]) == set(SPLITS)
    for split, numbers in statistics["splits"].items():
        lines = _manifest(out, split)
        assert numbers["utterances"] == len(lines) >= synthetic.MIN_UTTERANCES
        assert numbers["speakers"] == len({line["speaker"] for line in lines})
        seconds = sum(line["duration"] for line in lines)
        assert numbers["hours"] == pytest.approx(seconds / 3600, abs=1e-4)
        assert seconds >= 3600 * split_hours(SMALL)[split]
        for line in lines:
            info = soundfile.info(out / line["audio_filepath"])
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            assert info.frames / 16000 == line["duration"]
    files = {line["audio_filepath"] for split in SPLITS for line in _manifest(out, split)}
    assert files == {str(path.relative_to(out)) for path in out.rglob("*.wav")}


def test_voices_and_sentences_are_disjoint(corpus: tuple[Path, dict[str, Any]]) -> None:
    out, _ = corpus
    for key in ("speaker", "text"):
        heard = {split: {line[key] for line in _manifest(out, split)} for split in SPLITS}
        for one, other in itertools.combinations(SPLITS, 2):
            assert not heard[one] & heard[other]


@pytest.mark.parametrize("num_jobs", [1, 3])
def test_same_seed_gives_the_same_bytes(
    corpus: tuple[Path, dict[str, Any]], tmp_path: Path, num_jobs: int
) -> None:
    config = SyntheticConfig(hours=SMALL, seed=7)
    prepare_synthetic(config, tmp_path / "again", num_jobs=num_jobs)
    assert _files(tmp_path / "again") == _files(corpus[0])
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_another_seed_gives_another_corpus(
    corpus: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    prepare_synthetic(SyntheticConfig(hours=SMALL, seed=8), tmp_path / "other")
    assert not set(_files(tmp_path / "other").values()) & set(_files(corpus[0]).values())


def test_the_same_corpus_is_reused_and_another_refused(
    corpus: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, statistics = corpus
    monkeypatch.setattr(synthetic, "_speak_corpus", None)
    assert prepare_synthetic(SyntheticConfig(hours=SMALL, seed=7), out) == statistics
    with pytest.raises(DataError, match="another configuration"):
        prepare_synthetic(SyntheticConfig(hours=SMALL, seed=9), out)


def test_of_two_processes_that_speak_the_same_one_waits_for_neither(
    corpus: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken, statistics = corpus
    out = tmp_path / "corpus"

    def speak_too_slowly(*arguments: Any) -> dict[str, Any]:
        shutil.copytree(spoken, out)  # what the other process was quicker with
        (arguments[2] / "train.jsonl").write_text("")
        return {}

    monkeypatch.setattr(synthetic, "_speak_corpus", speak_too_slowly)
    assert prepare_synthetic(SyntheticConfig(hours=SMALL, seed=7), out) == statistics
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert (out / "train.jsonl").read_bytes() == (spoken / "train.jsonl").read_bytes()


def test_text_mode_speaks_the_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Sentence number {n}, please." for n in range(40)))
    config = SyntheticConfig(preset="assistant-easy", hours=0.03, text=str(text), snr_db=(3.0, 4.0))
    statistics = prepare_synthetic(config, tmp_path / "out")
    heard = {split: _manifest(tmp_path / "out", split) for split in SPLITS}
    texts = {split: {line["text"] for line in lines} for split, lines in heard.items()}
    assert statistics["sentences"] == {split: len(texts[split]) for split in SPLITS}
    assert sum(map(len, texts.values())) == 40
    assert "sentence number thirty nine please" in set().union(*texts.values())
    assert len(heard["train"]) > len(texts["train"])
    assert all(3.0 <= line["snr_db"] <= 4.0 for lines in heard.values() for line in lines)


def test_progress_ends_complete(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    config = SyntheticConfig(preset="assistant-easy", hours=SMALL)
    prepare_synthetic(config, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] == max(total for _, total in calls)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"preset": "hard"},
            "preset must be one of assistant, assistant-easy, assistant-voices, "
            "assistant-strangers, got 'hard'",
        ),
        ({"hours": 0.0}, "hours is .*; it must be above 0 and at most 1000"),
        ({"hours": float("nan")}, "hours is .*; it must be above 0 and at most 1000"),
        ({"hours": 1001.0}, "at most 1000"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"snr_db": (10.0, 5.0)}, "low first"),
        ({"snr_db": (float("nan"), 5.0)}, "finite"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**fields)


def test_foreign_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    file.write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        prepare_synthetic(SyntheticConfig(hours=SMALL), folder)
    with pytest.raises(DataError, match="is a file"):
        prepare_synthetic(SyntheticConfig(hours=SMALL), file)
    with pytest.raises(DataError, match="cannot be written"):
        prepare_synthetic(SyntheticConfig(hours=SMALL), file / "below")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "thesis.txt"]


def test_bad_requests_make_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_jobs"):
        prepare_synthetic(SyntheticConfig(hours=SMALL), tmp_path / "out", num_jobs=0)
    with pytest.raises(DataError, match="cannot be read"):
        prepare_synthetic(SyntheticConfig(text=str(tmp_path / "no.txt")), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_too_small_a_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(synthetic.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="GB"):
        prepare_synthetic(SyntheticConfig(hours=SMALL), tmp_path / "out")


def test_failure_and_interrupt_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SyntheticConfig(preset="assistant-easy", hours=SMALL)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_synthetic(config, tmp_path / "out", progress=interrupt)
    assert not list(tmp_path.iterdir())
    voices = dict.fromkeys(SPLITS, ("xx-nowhere",))
    monkeypatch.setattr(synthetic, "split_voices", lambda preset, seed: voices)
    with pytest.raises(DataError, match="xx-nowhere"):
        prepare_synthetic(config, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    finished = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    target = tmp_path / "out"
    dead = tmp_path / (synthetic._scratch_prefix(target, int(finished.stdout)) + "abc")
    alive = tmp_path / (synthetic._scratch_prefix(target, os.getpid()) + "abc")
    other = tmp_path / ".out.elsewhere-1-abc"
    for folder in (dead, alive, other):
        (folder / "audio").mkdir(parents=True)
    synthetic._remove_abandoned(target)
    assert sorted(tmp_path.iterdir()) == sorted([alive, other])


def test_importing_is_light() -> None:
    code = "import sys, omnisparse.synthetic.corpus; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
