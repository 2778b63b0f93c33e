"""Learning rates over a run."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from omnisparse.training.config import TrainingConfig
from omnisparse.training.schedule import learning_rate


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "hold_exponential"])
def test_warm_up_as_steps_and_as_a_share_of_the_run_are_one(schedule: str) -> None:
    steps = TrainingConfig(schedule=schedule, warmup_steps=20, learning_rate=1.0)
    share = TrainingConfig(schedule=schedule, warmup_fraction=0.1, learning_rate=1.0)
    rates = [learning_rate(step, steps, 200) for step in range(200)]
    assert rates == [learning_rate(step, share, 200) for step in range(200)]
    assert rates[0] == 1 / 20
    assert rates[19] == 1.0
    assert max(rates) == 1.0
    assert schedule == "constant" or learning_rate(200, steps, 200) == pytest.approx(0.01)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "hold_exponential"])
def test_parts_of_one_decay_are_the_whole(schedule: str) -> None:
    whole = TrainingConfig(schedule=schedule, warmup_steps=0)
    rates = [learning_rate(step, whole, 200) for step in range(200)]
    found = []
    for begin, end in ((0.0, 0.25), (0.25, 0.5), (0.5, 1.0)):
        part = replace(whole, schedule_part=(begin, end))
        steps = round(200 * (end - begin))
        found += [learning_rate(step, part, steps) for step in range(steps)]
    assert found == pytest.approx(rates)


@pytest.mark.parametrize("part", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.6, 0.2)])
def test_a_part_of_a_decay_lies_inside_it(part: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="it must rise, inside 0 to 1"):
        TrainingConfig(schedule_part=part)


def test_hold_then_exponential_decay() -> None:
    config = TrainingConfig(
        schedule="hold_exponential", hold_fraction=0.5, warmup_steps=0, learning_rate=2.0
    )
    rates = [learning_rate(step, config, 100) for step in range(101)]
    assert set(rates[:51]) == {2.0}
    ratios = [later / earlier for earlier, later in pairwise(rates[50:])]
    assert ratios == pytest.approx([0.01 ** (1 / 50)] * 50)
