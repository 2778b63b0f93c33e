"""Checks that the configurations of both model kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

RankScheme = Literal["stacked", "per_gate", "joint"]
"""What a product of two factors is of in an LSTM layer: see :mod:`omnisparse.models.factored`."""


def check_multiple(config: object, name: str, divisor: str, *, factor: int = 1) -> None:
    """Check that a width can be divided.

    Args:
        config: A model configuration.
        name: The field that is divided.
        divisor: The field that divides it, at least 1.
        factor: ``factor`` times ``divisor`` must divide the width.

    Raises:
        ValueError: If ``name`` is not a multiple.
    """
    value, step = getattr(config, name), factor * getattr(config, divisor)
    if value % step:
        times = f"{factor} * {divisor}" if factor > 1 else divisor
        raise ValueError(f"{name} is {value}; it must be a multiple of {times}, {step}")


def check_projection(config: object, part: str) -> None:
    """Check the LSTMP width of ``part`` ("encoder" or "decoder").

    Args:
        config: A model configuration with ``<part>_projection`` and ``<part>_dim``.
        part: Which pair of fields to check.

    Raises:
        ValueError: If the projection is not None and outside 1..dim - 1.
    """
    projection, dim = getattr(config, f"{part}_projection"), getattr(config, f"{part}_dim")
    if projection is None:
        return
    if not 1 <= projection < dim:
        raise ValueError(
            f"{part}_projection is {projection}; it must be null or from 1 to {dim - 1} "
            f"(below {part}_dim)"
        )


def check_ranks(ranks: Mapping[str, int], scheme: str) -> None:
    """Check ``rank_scheme``; ranks are checked when the net is built.

    Raises:
        ValueError: If there is no such scheme, or it is chosen without ``ranks``.
    """
    if scheme not in get_args(RankScheme):
        legal = ", ".join(get_args(RankScheme))
        raise ValueError(f"rank_scheme is {scheme!r}; it must be one of {legal}")
    if scheme != "stacked" and not ranks:
        raise ValueError(f"rank_scheme is {scheme}, but ranks names no matrix; leave it out")
