"""Errors for the user: each message is one line that names the value and the legal values.

A configuration declares the legal range in the type of a field, as in
``dropout: Probability = 0.1``, and calls :func:`check_ranges` in ``__post_init__``.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


class OmnisparseError(Exception):
    """A failure the user can act on; the command line prints it as one line and exits.

    Attributes:
        exit_code: Exit code of the command line.
        on_every_process: Whether all processes of one training fail in this way; then only the
            first process prints the message.
    """

    exit_code = 1
    on_every_process = False


class UsageError(ValueError):
    """A value that is wrong in any context, such as a size that is not a size: exit code 2."""

    exit_code = 2


class FormatError(OmnisparseError):
    """A file that is damaged or not of the expected format: artifact, checkpoint or nested file."""


class DataError(OmnisparseError):
    """A corpus, manifest or recording that cannot be used."""


_LARGEST = 1.7e308
"""A whole number above it is none that can be computed with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The legal values of a number: ``Annotated[float, Range(above=0, maximum=1)]``.

    Attributes:
        minimum: Smallest legal value.
        maximum: Largest legal value.
        above: Legal values are larger than this.
        below: Legal values are smaller than this.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether ``value`` is legal; NaN and infinity never are."""
        return (
            -_LARGEST < value < _LARGEST
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The legal values in words, such as ``at least 1``."""
        if self.minimum is not None and self.maximum is not None:
            return f"from {_figure(self.minimum)} to {_figure(self.maximum)}"
        limits = {
            "at least": self.minimum,
            "above": self.above,
            "below": self.below,
            "at most": self.maximum,
        }
        given = {word: limit for word, limit in limits.items() if limit is not None}
        return " and ".join(f"{word} {_figure(limit)}" for word, limit in given.items())


def _figure(limit: float) -> str:
    """A limit as text: ``1000`` for 1000.0, and all digits of a whole number."""
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


PositiveInt = Annotated[int, Range(minimum=1)]
"""A count or a width."""

NonNegativeInt = Annotated[int, Range(minimum=0)]
"""A count that may be 0."""

PositiveFloat = Annotated[float, Range(above=0)]
"""A rate, a norm."""

NonNegativeFloat = Annotated[float, Range(minimum=0)]
"""The weight of a loss."""

Probability = Annotated[float, Range(minimum=0, below=1)]
"""A probability of dropout, or a share below 1."""

Share = Annotated[float, Range(minimum=0, maximum=1)]
"""A share of a whole."""


def check_ranges(config: Any, error: type[ValueError] = ValueError) -> None:
    """Check every field of a dataclass whose type has a :class:`Range`; None is always legal.

    Args:
        config: An instance of a dataclass.
        error: What to raise.

    Raises:
        ValueError: If a field is outside its range, or is no int where an int is declared; the
            message gives name, value and legal range.
    """
    for name, is_whole, legal in _ranges(config.__class__):
        value = getattr(config, name)
        if value is None:
            continue
        if is_whole and type(value) is not int:  # 2.0 would fail later, and True is not a number
            raise error(f"{name} is {value!r}; it must be a whole number")
        if value not in legal:
            raise error(f"{name} is {value}; it must be {legal}")


@cache
def _ranges(owner: type) -> tuple[tuple[str, bool, Range], ...]:
    """Name, whether it is an int, and range of every field of ``owner`` that has a range."""
    found = []
    for name, hint in get_type_hints(owner, include_extras=True).items():
        options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for option in options:
            if get_origin(option) is Annotated:
                kind, *notes = get_args(option)
                found += [(name, kind is int, note) for note in notes if isinstance(note, Range)]
    return tuple(found)
