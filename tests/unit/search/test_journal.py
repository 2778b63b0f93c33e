"""What was measured survives any kill, and is measured once."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from omnisparse.search.journal import Journal, key_of
from omnisparse.search.scores import ItemScores
from omnisparse.sparsity.space import SubnetSpec

HERE = {"weights": "abc", "block": [1, 1]}


def test_answers_come_back_bit_by_bit(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new", HERE)
    answer = [0.1, 1 / 3, 1e-310, -7.0]
    journal.put("question", answer, seconds=1.5)
    assert journal.ask("other", lambda: 2.0) == 2.0
    again = Journal(tmp_path / "new", HERE)
    assert again.ask("other", lambda: 3.0) == 2.0
    assert again.seconds == journal.seconds > 1.5
    assert again.get("question") == answer
    assert again.get("another") is None
    assert len(again) == 2


def test_other_circumstances_are_another_journal(tmp_path: Path) -> None:
    Journal(tmp_path, HERE).put("question", 1.0)
    assert Journal(tmp_path, {**HERE, "weights": "abd"}).get("question") is None
    assert Journal(tmp_path, HERE).get("question") == 1.0


def test_a_full_disk_loses_the_answer_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, HERE)
    journal.put("before", 1.0)
    write, room = os.write, [5]

    def fill(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, data[: room[0]])
        room[0] -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fill)
        with pytest.raises(OSError, match="No space"):
            journal.put("lost", 2.0)
    journal.put("after", 3.0)
    again = Journal(tmp_path, HERE)
    assert [again.get(name) for name in ("before", "lost", "after")] == [1.0, None, 3.0]
    assert journal.get("lost") is None


def test_a_journal_cut_anywhere_keeps_all_whole_answers(tmp_path: Path) -> None:
    journal = Journal(tmp_path, HERE)
    header = journal.path.stat().st_size
    ends = []
    for number in range(4):
        journal.put(f"q{number}", [number + 0.5])
        ends.append(journal.path.stat().st_size)
    content = journal.path.read_bytes()
    for length in range(len(content) + 1):
        journal.path.write_bytes(content[:length])
        again = Journal(tmp_path, HERE)
        # The end of a line may be missing: the answer before it is whole.
        expected = sum(end - 1 <= length for end in ends) if length >= header else 0
        assert len(again) == expected
        again.put("after", 1.0)
        after = Journal(tmp_path, HERE)
        assert len(after) == expected + 1
        assert after.get("after") == 1.0


def test_equal_specs_have_one_key() -> None:
    first, second = SubnetSpec({"a": 0.5, "b": 0.1}), SubnetSpec({"b": 0.1, "a": 0.5})
    assert key_of(first) == key_of(second)
    assert key_of(first) != key_of(SubnetSpec({"a": 0.5, "b": 0.2}))


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    asked: list[tuple[SubnetSpec, tuple[int, ...]]] = []

    def measure(spec: SubnetSpec, items: Sequence[int]) -> list[float]:
        asked.append((spec, tuple(items)))
        return [10.0 * item + spec.sparsity["a"] for item in items]

    units = [1.0, 2.0, 3.0]
    one, two = SubnetSpec({"a": 0.5}), SubnetSpec({"a": 0.25})
    for _ in range(2):  # the second time as another process would
        scores = ItemScores(measure, units, Journal(tmp_path, HERE))
        assert scores.rate(one) == pytest.approx(31.5 / 6)
        assert scores.rate(one, [2, 0]) == pytest.approx(21 / 4)  # from the whole
        assert scores.rate(two, [0, 2]) == pytest.approx(20.5 / 4)
        np.testing.assert_array_equal(scores.values(two, [0, 2]), [0.25, 20.25])
    assert asked == [(one, (0, 1, 2)), (two, (0, 2))]
    assert scores.num_measured == 0
