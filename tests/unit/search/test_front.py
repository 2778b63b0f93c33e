"""A stored front comes back as it was, and what is not one is told in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnisparse.errors import FormatError
from omnisparse.search.front import FrontEntry, front_to_json, pick, read_front
from omnisparse.sparsity.space import SubnetSpec


def entry(size: str, nonzero: int) -> FrontEntry:
    return FrontEntry(
        size=size, nonzero=nonzero, wer=10.0, wer_low=9.5, wer_high=1 / 3, score=0.1,
        uniform_wer=11.0, uniform_score=0.2, evaluations=7, dominated=False,
        spec=SubnetSpec({"encoder.weight": 1 / 7, "joiner.weight": 0.5}),
    )  # fmt: skip


ENTRIES = [entry("25%", 250), entry("50%", 500)]


def test_a_front_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_text(front_to_json(ENTRIES, {"seed": 3}))
    assert read_front(path) == ENTRIES
    assert json.loads(path.read_text())["seed"] == 3
    assert pick(ENTRIES, 500) is ENTRIES[1]


def test_a_size_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no model of 400 .* it has 25% \(250\), 50% \(500\)"):
        pick(ENTRIES, 400)
    with pytest.raises(ValueError, match="it has none"):
        pick([], 400)


WHOLE = front_to_json(ENTRIES, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "format None of a front; known: 1"),
        (WHOLE.replace('"format": 1', '"format": 2'), "format 2 of a front"),
        ('{"format": 1}', "not a front"),
        ('{"format": 1, "front": 3}', "not a front"),
        ('{"format": 1, "front": [3]}', "not a front"),
        (WHOLE.replace("nonzero", "zero"), "not a front"),
        (WHOLE.replace("0.5", "1.5"), "sparsity of joiner.weight is 1.5; legal"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_front_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "front.json"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        read_front(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="there is no front; `omnisparse search` makes one"):
        read_front(tmp_path / "missing.json")
