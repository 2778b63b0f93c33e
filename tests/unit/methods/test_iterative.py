"""The sizes of the rounds, without training."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omnisparse.methods import IterativeConfig, RankSearchMethodConfig
from omnisparse.methods.iterative import Rounds
from omnisparse.pipeline.stages import part_between, part_of_steps
from omnisparse.training.config import TrainingConfig
from omnisparse.training.schedule import learning_rate


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
    # A round after one that was thrown away is as long as any before the last, and as far in the
    # decay of the learning rate: it does not rise again.
    assert part_of_steps(4, False, count=4, last_share=0.4) == pytest.approx((0.4, 0.6))
    assert part_of_steps(3, False, count=2, last_share=0.4) == pytest.approx((0.0, 0.6))


@given(
    count=st.integers(1, 12), percent=st.integers(0, 100), steps=st.integers(0, 300),
    one_decay=st.booleans(),
)  # fmt: skip
@example(count=9, percent=5, steps=120, one_decay=True)  # were 121 steps in all
@example(count=3, percent=0, steps=90, one_decay=True)  # a part of nothing is no part of a decay
@example(count=3, percent=100, steps=90, one_decay=True)
def test_no_step_is_lost_or_added(count: int, percent: int, steps: int, one_decay: bool) -> None:
    whole = TrainingConfig(max_steps=steps)
    found = []
    for number in range(1, count + 1):
        part = part_of_steps(number, number == count, count=count, last_share=percent / 100)
        found.append(part_between(whole, *part, one_decay=one_decay).max_steps or 0)
    assert min(found) >= 0
    assert sum(found) == steps


def test_a_round_without_a_share_of_the_steps_takes_none() -> None:
    whole = TrainingConfig(epochs=14.0)
    part = part_of_steps(1, False, count=3, last_share=1.0)
    assert part_between(whole, *part, one_decay=True).max_steps == 0


@pytest.mark.parametrize("one_decay", [True, False])
def test_the_rates_of_the_rounds(one_decay: bool) -> None:
    whole = TrainingConfig(max_steps=400, warmup_steps=100, learning_rate=1.0)
    parts = [part_of_steps(number, number == 3, count=3, last_share=0.7) for number in (1, 2, 3)]
    trainings = [part_between(whole, *part, one_decay=one_decay) for part in parts]
    assert [training.max_steps for training in trainings] == [60, 60, 280]
    # A short round warms up for its share, else it would never have its peak rate.
    assert [training.warmup_steps for training in trainings] == [15, 15, 70]
    rates = [
        [learning_rate(step, training, training.max_steps or 0) for step in range(400)]
        for training in trainings
    ]
    if not one_decay:
        assert [max(rate) for rate in rates] == [1.0, 1.0, 1.0]
        assert [rates[0][59], rates[1][59], rates[2][279]] == pytest.approx([0.01] * 3, abs=2e-3)
        return
    assert max(rates[0]) == 1.0
    # After its warm-up each round goes on with the decay where the one before ended.
    assert rates[0][59] > 0.9
    assert rates[1][15] == pytest.approx(rates[0][59], abs=0.05)
    assert rates[2][70] < rates[1][59]
    assert rates[2][279] == pytest.approx(0.01, abs=2e-3)


@pytest.mark.parametrize("kind", [IterativeConfig, RankSearchMethodConfig])
def test_sizes_are_checked(kind: type) -> None:
    for size in ("5x", "25%", "16M", 1000):
        assert kind(size=size).size == size
    for size, message in (("x", "is not understood"), ("2MB", "is in bytes")):
        with pytest.raises(ValueError, match=message):
            kind(size=size)
