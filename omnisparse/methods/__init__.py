"""Training methods, one file each. ``build_method`` maps a configuration to its method.

Every member of the union ``MethodConfig`` is available everywhere: in ``method=KIND``, in
``train_baseline.py``, in sweeps and in ``compare``. A configuration may describe its method
further by these optional attributes and keys:

* ``every_size`` (class attribute, default False): one training gives models of all sizes, by
  extraction.
* ``mean_passes`` (default 1): utterance passes of a step, relative to a dense step.
* a key ``size``: the net is pruned to it.
* a key ``distillation``: a ``DistillationConfig``, or null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from omnisparse.methods.base import Dense, DenseConfig, Loss, Method
from omnisparse.methods.distillation import Distillation, DistillationConfig, Teacher
from omnisparse.methods.fixed_mask import FixedMask, FixedMaskConfig
from omnisparse.methods.gradual_pruning import GradualPruning, GradualPruningConfig
from omnisparse.methods.iterative import IterativeConfig
from omnisparse.methods.progressive import ProgressiveConfig
from omnisparse.methods.rank_search import RankSearchMethodConfig
from omnisparse.methods.sandwich import Sandwich, SandwichConfig

LossConfig = (
    DenseConfig | SandwichConfig | DistillationConfig | GradualPruningConfig | FixedMaskConfig
)
"""Methods that are one training: sources of losses."""

StagedConfig = ProgressiveConfig | RankSearchMethodConfig | IterativeConfig
"""Methods of several trainings, one after the other; ``omnisparse/pipeline/stages.py``."""

MethodConfig = LossConfig | StagedConfig

KINDS: Mapping[str, Any] = {
    str(next(item.default for item in fields(member) if item.name == "kind")): member
    for member in get_args(MethodConfig)
}
"""The configuration classes by their kind."""


def has_every_size(kind: str) -> bool:
    """Whether one training by a method of ``kind`` gives models of all sizes."""
    return bool(getattr(KINDS.get(kind), "every_size", False))


def passes_of(config: MethodConfig) -> float:
    """Utterance passes of a step relative to a dense step: mean over a run, at least 1."""
    return float(getattr(config, "mean_passes", 1.0))


def has_key(kind: str, name: str) -> bool:
    """Whether the configuration of ``kind`` has a key ``name``."""
    return any(item.name == name for item in fields(KINDS[kind]))


def build_method(config: MethodConfig, *, seed: int, teacher: Teacher | None = None) -> Method:
    """Return the method that ``config`` describes.

    Args:
        config: One of the union's members; of a method of several trainings, that of a stage.
        seed: The run's seed.
        teacher: The teacher that :func:`distillation_of` configures, if any.
    """
    assert not isinstance(config, StagedConfig), "each of its stages has its own"
    if isinstance(config, SandwichConfig):
        return Sandwich(config, seed=seed)
    if isinstance(config, GradualPruningConfig):
        inner = config.distillation or DenseConfig()
        return GradualPruning(config, build_method(inner, seed=seed, teacher=teacher))
    if isinstance(config, FixedMaskConfig):
        inner = config.distillation or DenseConfig()
        return FixedMask(config, build_method(inner, seed=seed, teacher=teacher))
    if isinstance(config, DistillationConfig):
        assert teacher is not None, "the caller loads the teacher"
        return Distillation(config, teacher)
    return Dense()


def distillation_of(config: MethodConfig) -> DistillationConfig | None:
    """The distillation that ``config`` uses, alone or while pruning; None if there is none."""
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
    "FixedMask",
    "FixedMaskConfig",
    "GradualPruning",
    "GradualPruningConfig",
    "IterativeConfig",
    "Loss",
    "LossConfig",
    "Method",
    "MethodConfig",
    "ProgressiveConfig",
    "RankSearchMethodConfig",
    "Sandwich",
    "SandwichConfig",
    "StagedConfig",
    "Teacher",
    "build_method",
    "distillation_of",
    "has_every_size",
    "has_key",
    "passes_of",
]
