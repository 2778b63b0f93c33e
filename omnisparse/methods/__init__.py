"""Training methods, one file each. ``build_method`` maps a configuration to its method."""

from __future__ import annotations

from omnisparse.methods.base import Dense, DenseConfig, Loss, Method
from omnisparse.methods.distillation import Distillation, DistillationConfig, Teacher
from omnisparse.methods.gradual_pruning import GradualPruning, GradualPruningConfig
from omnisparse.methods.sandwich import Sandwich, SandwichConfig

MethodConfig = DenseConfig | SandwichConfig | DistillationConfig | GradualPruningConfig


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
    if isinstance(config, GradualPruningConfig):
        return config.distillation
    return config if isinstance(config, DistillationConfig) else None


__all__ = [
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
]
