"""A card takes word error rates later on, and nothing else of the artifact changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from omnisparse.artifact import read_artifact, update_card
from omnisparse.errors import FormatError, OmnisparseError

FIRST = {"wer": 8.614, "wer_low": 8.0, "wer_high": 9.25, "utterances": 1234}
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
