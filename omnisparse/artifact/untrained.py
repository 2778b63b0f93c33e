"""Sizes that nobody trained: what an artifact's source says of it, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

SMALLEST, MAX_STEPS = "smallest_trained", "max_steps"
"""Keys of an artifact's source: non-zeros of the smallest net trained, steps of the whole run."""

_TOLERANCE = 0.99
"""Whole blocks make a size a little smaller than it was asked for."""


def untrained_warnings(nonzero: int, source: Mapping[str, Any]) -> list[str]:
    """What speaks against a model of this size, a line each.

    Args:
        nonzero: Non-zero parameters of the model.
        source: Where it says that it comes from; may be anyone's.
    """
    found = []
    smallest = source.get(SMALLEST)
    if _is_count(smallest) and nonzero < _TOLERANCE * smallest:
        found.append(
            f"{nonzero:,} non-zero parameters are fewer than the smallest size that was trained, "
            f"{smallest:,}: measure its error rate, which may be many times higher"
        )
    step, of = source.get("step"), source.get(MAX_STEPS)
    if _is_count(step) and _is_count(of) and step < of:
        found.append(
            f"the training stands at step {step:,} of {of:,}: "
            "not all sizes are trained to their end"
        )
    return found


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
