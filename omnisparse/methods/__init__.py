"""Training methods, one file each. ``build_method`` maps a configuration to its method.

What is in the union ``MethodConfig`` is known everywhere: to ``method=KIND``, to
``train_baseline.py``, to sweeps and to ``compare``. A configuration may say more of its method than
its keys, by attributes that all have a default:

* ``every_size`` (class attribute, False): one training gives models of all sizes, by extraction.
* ``mean_passes`` (1): utterance passes that a step takes, in those of a dense step.
* a key ``size``: the net is pruned to it.
* a key ``distillation``: a ``DistillationConfig``, or null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from omnisparse.methods.base import Dense, DenseConfig, Loss, Method
from omnisparse.methods.distillation import Distillation, DistillationConfig, Teacher
from omnisparse.methods.gradual_pruning import GradualPruning, GradualPruningConfig
from omnisparse.methods.sandwich import Sandwich, SandwichConfig

MethodConfig = DenseConfig | SandwichConfig | DistillationConfig | GradualPruningConfig

KINDS: Mapping[str, Any] = {
    str(next(item.default for item in fields(member) if item.name == "kind")): member
    for member in get_args(MethodConfig)
}
"""The configurations by their kind."""


def has_every_size(kind: str) -> bool:
    """Whether one training by a method of ``kind`` gives models of all sizes."""
    return bool(getattr(KINDS.get(kind), "every_size", False))


def passes_of(config: MethodConfig) -> float:
    """Utterance passes of a step, in those of a dense step: mean over a run, at least 1."""
    return float(getattr(config, "mean_passes", 1.0))


def has_key(kind: str, name: str) -> bool:
    """Whether the configuration of ``kind`` has a key ``name``."""
    return any(item.name == name for item in fields(KINDS[kind]))


def build_method(config: MethodConfig, *, seed: int, teacher: Teacher | None = None) -> Method:
    """Return the method that ``config`` describes.

    Args:
        config: One of the union's members.
        seed: The run's seed.
        teacher: The teacher of :func:`distillation_of`'s configuration, where there is one.
    """
    if isinstance(config, SandwichConfig):
        return Sandwich(config, seed=seed)
    if isinstance(config, GradualPruningConfig):
        inner = config.distillation or DenseConfig()
        return GradualPruning(config, build_method(inner, seed=seed, teacher=teacher))
    if isinstance(config, DistillationConfig):
        assert teacher is not None, "the caller loads the teacher"
        return Distillation(config, teacher)
    return Dense()


def distillation_of(config: MethodConfig) -> DistillationConfig | None:
    """How ``config`` learns from a teacher, alone or while pruning; None if it has none."""
    if isinstance(config, DistillationConfig):
        return config
    inner: DistillationConfig | None = getattr(config, "distillation", None)
    return inner


__all__ = [
    "KINDS",
    "Dense",
    "DenseConfig",
    "Distillation",
    "DistillationConfig",
    "GradualPruning",
    "GradualPruningConfig",
    "Loss",
    "Method",
    "MethodConfig",
    "Sandwich",
    "SandwichConfig",
    "Teacher",
    "build_method",
    "distillation_of",
    "has_every_size",
    "has_key",
    "passes_of",
]
