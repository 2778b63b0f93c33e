"""Learning rates over a run."""

from __future__ import annotations

import math

from omnisparse.training.config import TrainingConfig

_FINAL_SHARE = 0.01
"""Of the peak, at the last step."""


def warmup_steps(config: TrainingConfig, max_steps: int) -> int:
    """Steps of linear warm-up, given as such or as a share of ``max_steps``."""
    if config.warmup_fraction > 0:
        return round(config.warmup_fraction * max_steps)
    return config.warmup_steps


def learning_rate(step: int, config: TrainingConfig, max_steps: int) -> float:
    """Learning rate of one step.

    Args:
        step: Counted from 0.
        config: Peak, warm-up and schedule.
        max_steps: Steps of the run.

    Returns:
        Linear warm-up, then the configured decay to 1 % of the peak. A run that goes through a
        later part of the decay warms up to the rate at its place.

    Source: Pang et al. 2018, section 4, for ``hold_exponential``.
    """
    warmup = warmup_steps(config, max_steps)
    begin, end = config.schedule_part
    whole = max_steps / (end - begin)
    rate = _decayed(begin * whole + step, config, warmup, whole)
    return rate * (step + 1) / warmup if step < warmup else rate


def _decayed(step: float, config: TrainingConfig, warmup: int, max_steps: float) -> float:
    """Rate at a step of a whole decay; its peak before that begins."""
    peak = config.learning_rate
    if step < warmup:
        return peak
    if config.schedule == "constant":
        return peak
    if config.schedule == "hold_exponential":
        begin = max(warmup, config.hold_fraction * max_steps)
        done = (step - begin) / max(1, max_steps - begin)
        return peak * float(_FINAL_SHARE ** min(1.0, max(0.0, done)))
    done = (step - warmup) / max(1, max_steps - warmup)
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return peak * (_FINAL_SHARE + (1 - _FINAL_SHARE) * max(0.0, shape))
