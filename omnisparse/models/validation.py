"""Checks that the configurations of both model kinds share."""

from __future__ import annotations

MAX_CONTEXT_FRAMES = 10_000
"""Longest segment or context of an encoder: 400 s at 40 ms. Masks and memories grow with them."""


def check_whole(name: str, value: object) -> None:
    """Check that a count is an int: 2.0 would only fail later, and True is none.

    Raises:
        ValueError: If ``value`` is anything else.
    """
    if type(value) is not int:
        raise ValueError(f"{name} is {value!r}; it must be a whole number")


def check_positive(
    config: object, names: str, *, minimum: int = 1, maximum: int | None = None
) -> None:
    """Check counts and widths.

    Args:
        config: A model configuration.
        names: Its fields to check, separated by spaces.
        minimum: Smallest legal value.
        maximum: Largest legal value; None for no limit.

    Raises:
        ValueError: If a field is no int, below ``minimum`` or above ``maximum``.
    """
    for name in names.split():
        value = getattr(config, name)
        check_whole(name, value)
        if value < minimum:
            raise ValueError(f"{name} is {value}; it must be at least {minimum}")
        if maximum is not None and value > maximum:
            raise ValueError(f"{name} is {value}; it must be at most {maximum}")


def check_fraction(config: object, names: str) -> None:
    """Check probabilities and shares.

    Args:
        config: A model configuration.
        names: Its fields to check, separated by spaces.

    Raises:
        ValueError: If a field is outside [0, 1).
    """
    for name in names.split():
        value = getattr(config, name)
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} is {value}; it must be in [0, 1)")


def check_multiple(config: object, name: str, divisor: str, *, factor: int = 1) -> None:
    """Check that a width can be divided.

    Args:
        config: A model configuration.
        name: The field that is divided.
        divisor: The field that divides it, at least 1.
        factor: So many times ``divisor`` must divide it.

    Raises:
        ValueError: If ``name`` is no multiple.
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
    check_whole(f"{part}_projection", projection)
    if not 1 <= projection < dim:
        raise ValueError(
            f"{part}_projection is {projection}; it must be null or from 1 to {dim - 1} "
            f"(below {part}_dim)"
        )
