"""Enqueued trials as parents of a genetic search."""

from __future__ import annotations

import optuna
import pytest

from omnisparse.search.genetic import ask

NAMES = [f"x{index}" for index in range(8)]
MEMBERS = 12


@pytest.mark.parametrize("given", [MEMBERS, MEMBERS // 2])
def test_enqueued_trials_become_parents_and_keep_their_values(given: int) -> None:
    """Parents have values in the upper hundredth: their children do, but for a few mutations."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.NSGAIISampler(population_size=MEMBERS, seed=0)
    study = optuna.create_study(sampler=sampler)
    starts = [dict.fromkeys(NAMES, 0.99 + 0.0005 * number) for number in range(given)]
    for start in starts:
        study.enqueue_trial(start)
    asked: list[list[float]] = []
    for _ in range(2 * MEMBERS):
        trial = ask(study)
        values = [trial.suggest_float(name, 0.0, 1.0) for name in NAMES]
        asked.append(values)
        study.tell(trial, sum(1.0 - value for value in values))
    assert asked[:given] == [list(start.values()) for start in starts]
    high = [sum(value >= 0.99 for value in values) / len(NAMES) for values in asked]
    strangers, children = high[given:MEMBERS], high[MEMBERS:]
    assert not strangers or max(strangers) < 0.5  # the first generation is filled up at random
    assert sum(children) / len(children) > 0.6


def test_a_sampler_without_generations_takes_enqueued_trials_too() -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial({"x": 0.25})
    assert ask(study).suggest_float("x", 0.0, 1.0) == 0.25
