"""Training methods, one file each. ``build_method`` maps a configuration to its method."""

from __future__ import annotations

from omnisparse.methods.base import Dense, DenseConfig, Loss, Method
from omnisparse.methods.sandwich import Sandwich, SandwichConfig

MethodConfig = DenseConfig | SandwichConfig


def build_method(config: MethodConfig, *, seed: int) -> Method:
    """Return the method that ``config`` describes.

    Args:
        config: One of the union's members.
        seed: The run's seed.
    """
    if isinstance(config, SandwichConfig):
        return Sandwich(config, seed=seed)
    return Dense()


__all__ = [
    "Dense",
    "DenseConfig",
    "Loss",
    "Method",
    "MethodConfig",
    "Sandwich",
    "SandwichConfig",
    "build_method",
]
