"""The next point of a ``bayes`` sweep, from the results so far, by optuna's TPE.

Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization" (TPE).
Deviation: W&B's server fits a Gaussian process; no server is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LEGAL = ("constant", "categorical", "int_uniform", "uniform", "q_uniform", "log_uniform_values")
"""Distributions that TPE draws from."""

STARTUP = 5
"""Points that are drawn at random first."""


def next_point(
    rules: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, str],
    results: Sequence[tuple[Mapping[str, Any], float]],
    *,
    minimise: bool,
    number: int,
    seed: int,
) -> dict[str, Any]:
    """Draw one point; the same for the same results, number and seed.

    Args:
        rules: Constraints by parameter.
        kinds: The distribution of each.
        results: Points that have finished, with their metric.
        minimise: Whether smaller metrics are better.
        number: Which point of the sweep it is.
        seed: Of the sweep.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    choices = {
        name: list(rule["values"] if "values" in rule else [rule["value"]])
        for name, rule in rules.items()
        if kinds[name] in ("constant", "categorical")
    }
    spaces = {name: _space(rule, kinds[name], choices.get(name)) for name, rule in rules.items()}
    sampler = optuna.samplers.TPESampler(seed=(seed << 20) + number, n_startup_trials=STARTUP)
    study = optuna.create_study(direction="minimize" if minimise else "maximize", sampler=sampler)
    for point, value in results:
        if math.isfinite(value):
            study.add_trial(
                optuna.trial.create_trial(
                    params={
                        name: choices[name].index(point[name]) if name in choices else point[name]
                        for name in rules
                    },
                    distributions=spaces,
                    value=value,
                )
            )
    drawn = study.ask(spaces).params
    return {name: choices[name][drawn[name]] if name in choices else drawn[name] for name in rules}


def _space(rule: Mapping[str, Any], kind: str, choices: Sequence[Any] | None) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if choices is not None:  # by number: a choice may be a list, which optuna does not take
        return CategoricalDistribution(range(len(choices)))
    low, high = rule["min"], rule["max"]
    if kind == "int_uniform":
        return IntDistribution(low, high)
    step = rule.get("q", 1) if kind == "q_uniform" else None
    return FloatDistribution(low, high, log=kind == "log_uniform_values", step=step)
