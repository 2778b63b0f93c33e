"""A card takes word error rates later on, and nothing else of the artifact changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from omnisparse.artifact import read_artifact, update_card
from omnisparse.artifact.card import _use_elsewhere, add_latency
from omnisparse.errors import FormatError, OmnisparseError

FIRST = {"wer": 8.614, "wer_low": 8.0, "wer_high": 9.25, "utterances": 1234}
ALONE = {"wer": 12.5, "wer_low": None, "wer_high": None, "utterances": 1}
SECOND = {"wer": 101.5, "wer_low": 99.0, "wer_high": 103.0, "utterances": 7}


def others(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "README.md"}


def hub_rates(card: str) -> dict[str, float]:
    """The rates that a model hub reads from the front matter."""
    results = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    return {r["dataset"]["name"]: r["metrics"][0]["value"] for r in results}


def test_rates_gather_and_the_other_files_stay(tmp_path, net):
    folder = tmp_path / "a"
    net.write(folder, wer={"old": 7})
    before = others(folder)
    card = folder / "README.md"
    update_card(folder, "books-test", FIRST)
    update_card(folder, "a|b  test", SECOND)
    assert hub_rates(card.read_text()) == {"old": 7.0, "books-test": 8.61, "a b test": 101.5}
    row = "| WER books-test | 8.61 (95 % interval 8.00 to 9.25, 1,234 utterances) |"
    assert row in card.read_text().splitlines()
    assert f"| non-zero parameters | {read_artifact(folder).config['num_nonzero']:,} |" in (
        card.read_text()
    )
    update_card(folder, "books-test", {**FIRST, "wer": 5.0})
    assert hub_rates(card.read_text())["books-test"] == 5.0
    assert card.read_text().count("books-test |") == 1
    assert others(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_a_rate_of_one_utterance_has_no_interval(tmp_path, net):
    folder = tmp_path / "a"
    net.write(folder)
    update_card(folder, "alone", ALONE)
    update_card(folder, "books-test", FIRST)  # reads the card that is there
    update_card(folder, "alone", ALONE)
    lines = (folder / "README.md").read_text().splitlines()
    assert "| WER alone | 12.50 (no interval, 1 utterance) |" in lines
    assert "| WER books-test | 8.61 (95 % interval 8.00 to 9.25, 1,234 utterances) |" in lines


def test_a_missing_card_is_made_and_an_edited_one_kept(tmp_path, net):
    folder = tmp_path / "a"
    net.write(folder)
    card = folder / "README.md"
    card.unlink()
    update_card(folder, "test", FIRST)
    card.write_text(card.read_text() + "\nAsk Ann before you ship this.\n")
    edited = card.read_text()
    with pytest.raises(OmnisparseError, match=r"README\.md: it was edited by hand"):
        update_card(folder, "test", SECOND)
    assert card.read_text() == edited


def test_a_damaged_artifact_gets_no_card(tmp_path, net):
    folder = tmp_path / "a"
    net.write(folder)
    config = folder / "config.json"
    document = json.loads(config.read_text())
    document["omnisparse"]["num_nonzero"] += 1
    config.write_text(json.dumps(document))
    before = (folder / "README.md").read_bytes()
    with pytest.raises(FormatError, match="checksum"):
        update_card(folder, "test", FIRST)
    assert (folder / "README.md").read_bytes() == before


def test_a_failing_disk_leaves_the_old_card(tmp_path, net, monkeypatch):
    folder = tmp_path / "a"
    net.write(folder)
    before = (folder / "README.md").read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnisparse.atomic.os.replace", full)
    with pytest.raises(OmnisparseError, match="No space left"):
        update_card(folder, "test", FIRST)
    assert (folder / "README.md").read_bytes() == before
    assert len(list(folder.iterdir())) == 5


def test_a_latency_and_what_a_reader_needs(tmp_path, net):
    folder = tmp_path / "a"
    net.write(folder, source={"data": "a | corpus", "license": "apache-2.0"})
    before = others(folder)
    add_latency(folder, "laptop, one thread", "1.9 ms for 80 ms, real-time factor 0.024")
    update_card(folder, "test", FIRST)
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "omnisparse"
    rows = card.splitlines()
    assert "| latency laptop, one thread | 1.9 ms for 80 ms, real-time factor 0.024 |" in rows
    assert "| training data | a corpus |" in rows
    assert "| licence | apache-2.0 |" in rows
    assert 'recognizer = Recognizer.from_path(".")' in rows
    assert "omnisparse transcribe . speech.wav" in rows
    assert any(row.startswith("| WER test | 8.61 (95 % interval 8.00 to 9.25") for row in rows)
    assert others(folder) == before


def test_what_is_not_known_is_said(tmp_path, net):
    net.write(tmp_path / "a", source={})
    card = (tmp_path / "a" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    assert "| training data | not stated |" in card
    assert "| licence | not stated; whoever trained it decides |" in card


def test_how_other_runtimes_load_it():
    kaldi, nemo = {"type": "kaldi-fbank"}, {"type": "nemo-log-mel"}
    stateless, lstm = ({"kind": "transducer", "predictor_layers": n} for n in (0, 1))
    for model, features in ((stateless, kaldi), (stateless, {}), (lstm, nemo)):
        used = _use_elsewhere(model, features)
        assert "--format sherpa" in used
        assert "--joiner=sherpa/joiner.onnx" in used
    for model in (lstm, {"kind": "las"}):
        assert "--format onnx" in _use_elsewhere(model, kaldi)
    for model, features in (
        (stateless, nemo),
        (lstm, {**nemo, "per_utterance": True}),
        ({**lstm, "encoder": "emformer"}, nemo),
        ({**lstm, "family": "torchaudio"}, kaldi),
        (lstm, {"type": "torchaudio-log-mel"}),
    ):
        assert not _use_elsewhere(model, features)
