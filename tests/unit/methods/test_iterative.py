"""The sizes of the rounds, without training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.methods import IterativeConfig, RankSearchMethodConfig
from omnisparse.methods.iterative import Rounds
from omnisparse.pipeline.stages import part_of_steps


def test_accepted_rounds_fall_in_equal_ratios() -> None:
    rounds = Rounds(target=0.2, planned=3, spare=2)
    aims = []
    while True:
        share, last = rounds.next()
        aims.append(share)
        if last:
            break
        rounds.accept(share)
    assert aims == pytest.approx([0.2 ** (1 / 3), 0.2 ** (2 / 3), 0.2])
    assert aims[-1] == 0.2


def test_a_round_that_is_not_accepted_halves_the_step() -> None:
    rounds = Rounds(target=1 / 16, planned=2, spare=2)
    assert rounds.next() == (0.25, False)
    rounds.halve()
    assert rounds.next() == (0.5, False)
    rounds.accept(0.5)
    assert rounds.next() == (0.25, False)
    rounds.accept(0.25)
    assert rounds.next() == (1 / 16, True)  # no round is left to halve for


@given(
    target=st.floats(0.01, 0.95), planned=st.integers(1, 6), spare=st.integers(0, 4),
    good=st.lists(st.booleans(), min_size=12, max_size=12),
)  # fmt: skip
def test_the_last_round_aims_at_the_target_whatever_happens(
    target: float, planned: int, spare: int, good: list[bool]
) -> None:
    rounds = Rounds(target=target, planned=planned, spare=spare)
    for number, accepted in enumerate(good, start=1):
        share, last = rounds.next()
        assert target <= share < 1
        if last:
            assert share == target
            assert number <= planned + spare
            return
        if accepted:
            rounds.accept(share)
        else:
            rounds.halve()
    raise AssertionError("there is no last round")


def test_the_steps_of_the_planned_rounds_add_up() -> None:
    parts = [part_of_steps(number, number == 4, count=4, last_share=0.4) for number in range(1, 5)]
    assert parts[0][0] == 0.0
    assert [after[0] for after in parts[1:]] == pytest.approx([before[1] for before in parts[:-1]])
    assert parts[-1] == pytest.approx((0.6, 1.0))
    assert part_of_steps(1, True, count=1, last_share=0.4) == (0.0, 1.0)
    # A round after one that was thrown away is as long as any before the last.
    assert part_of_steps(4, False, count=4, last_share=0.4) == pytest.approx((0.0, 0.2))


@pytest.mark.parametrize("kind", [IterativeConfig, RankSearchMethodConfig])
def test_sizes_are_checked(kind: type) -> None:
    for size in ("5x", "25%", "16M", 1000):
        assert kind(size=size).size == size
    for size, message in (("x", "is not understood"), ("2MB", "is in bytes")):
        with pytest.raises(ValueError, match=message):
            kind(size=size)
