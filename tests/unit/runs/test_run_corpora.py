"""What a card says of a run's data and licence, from its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnisparse.config import ConfigError, config_from_dict, config_to_yaml
from omnisparse.runs.corpora import told_in_card


def test_corpora_and_licence(tmp_path: Path) -> None:
    config = config_from_dict(
        {
            "corpus": {
                "synthetic": {"preset": "assistant", "hours": 2.0},
                "base": "/home/ann/secret",
                "train": ["/home/ann/secret/calls.jsonl", "more.jsonl"],
            },
            "license": "cc-by-4.0",
        }
    )
    (tmp_path / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    data = "embedded corpus assistant (spoken by espeak-ng), 2.0 h; calls.jsonl; more.jsonl"
    assert told_in_card(tmp_path) == {"data": data, "license": "cc-by-4.0"}


@pytest.mark.parametrize("text", ["", "- a list", "corpus: 7", ": {", "\xff"])
def test_what_cannot_be_read_is_not_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    assert told_in_card(tmp_path) == {}
    assert told_in_card(tmp_path / "none") == {}


def test_a_licence_is_a_name() -> None:
    with pytest.raises(ConfigError, match="license is 'Ask Ann'; a hub's name of one"):
        config_from_dict({"license": "Ask Ann"})
