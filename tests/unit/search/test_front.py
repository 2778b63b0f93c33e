"""A stored front comes back as it was, and what is not one is told in a line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from omnisparse.errors import FormatError
from omnisparse.search.front import Front, FrontEntry, read_front
from omnisparse.sparsity.space import SubnetSpec


def entry(size: str, requested: int, wer: float = 10.0) -> FrontEntry:
    return FrontEntry(
        size=size, requested=requested, nonzero=requested - 8, wer=wer, wer_low=9.5,
        wer_high=1 / 3, score=0.1, uniform_wer=11.0, uniform_score=0.2, evaluations=7,
        dominated=False,
        spec=SubnetSpec({"encoder.weight": 1 / 7, "joiner.weight": 0.5}),
    )  # fmt: skip


FRONT = Front(
    identity="6-0badcafe", journal="abc", entries=(entry("25%", 250), entry("50%", 500, 9.0))
)


def test_a_front_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_text(FRONT.to_json({"seed": 3}))
    assert read_front(path) == FRONT
    assert json.loads(path.read_text())["seed"] == 3
    assert FRONT.pick(500) is FRONT.entries[1]  # by what was asked for, not by what blocks made


def test_a_size_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no model of 400 .* it has 25% \(250\), 50% \(500\)"):
        FRONT.pick(400)
    with pytest.raises(ValueError, match="it has none"):
        dataclasses.replace(FRONT, entries=()).pick(400)


def test_a_later_front_keeps_the_other_sizes_of_one_that_was_measured_alike() -> None:
    later = dataclasses.replace(FRONT, entries=(entry("70%", 700, 9.5), entry("25%", 250, 9.5)))
    joined = later.joined(FRONT)
    assert [(one.size, one.wer, one.dominated) for one in joined.entries] == [
        ("25%", 9.5, False), ("50%", 9.0, False), ("70%", 9.5, True)
    ]  # fmt: skip
    for other in (None, dataclasses.replace(FRONT, journal="of other weights")):
        assert [one.size for one in later.joined(other).entries] == ["25%", "70%"]


def test_of_a_size_searched_twice_the_better_stays() -> None:
    worse = dataclasses.replace(FRONT, entries=(entry("0.25K", 250, 10.5), entry("50%", 500, 8.0)))
    joined = worse.joined(FRONT)
    assert [(one.size, one.wer) for one in joined.entries] == [("25%", 10.0), ("50%", 8.0)]


def test_the_bill_of_a_size_is_that_of_all_searches_whichever_found_it() -> None:
    for wer in (9.5, 10.5):  # better and worse than the 10.0 that was found before
        later = dataclasses.replace(entry("25%", 250, wer), evaluations=12)  # 7 and 5 new ones
        (joined, _) = dataclasses.replace(FRONT, entries=(later,)).joined(FRONT).entries
        assert (joined.wer, joined.evaluations) == (min(wer, 10.0), 12)


WHOLE = FRONT.to_json({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "format None of a front; known: 2"),
        (WHOLE.replace('"format": 2', '"format": 1'), "format 1 of a front"),
        ('{"format": 2}', "not a front"),
        ('{"format": 2, "front": 3}', "not a front"),
        ('{"format": 2, "front": [3]}', "not a front"),
        (WHOLE.replace("nonzero", "zero"), "not a front"),
        (WHOLE.replace('"evaluations": 7', '"evaluations": null'), "evaluations is None, not of"),
        (WHOLE.replace('"wer": 10.0', '"wer": "10"'), "wer is '10', not of type float"),
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
    with pytest.raises(
        FormatError, match="there is no search result; `omnisparse search` makes one"
    ):
        read_front(tmp_path / "missing.json")
