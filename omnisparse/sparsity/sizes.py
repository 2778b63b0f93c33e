"""Parsing of requested sizes: `--size 16M` and `--sparsity 0.8`.

`budget` checks whether a model can have the size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from omnisparse.errors import UsageError

SizeKind = Literal["nonzero", "bytes", "fraction", "sparsity"]

LEGAL_SIZES = (
    "legal sizes: 16M or 500K (non-zero parameters of the whole model), "
    "20MB or 20MiB (bytes of the file), 25% (of the dense parameters)"
)
_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_BYTE_UNITS = {
    "B": 1,
    **{"KB": 10**3, "MB": 10**6, "GB": 10**9},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30},
}
_SIZE = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*([A-Za-z]*|%)\s*")


@dataclass(frozen=True, slots=True)
class Size:
    """A parsed request; `Budget.solve` checks whether it is legal for a model.

    Attributes:
        kind: What is limited.
        value: Parameters (`nonzero`), bytes (`bytes`), share of the dense parameters
            (`fraction`) or share of the prunable weights that is zero (`sparsity`).
        text: The request as the user wrote it, for messages.
    """

    kind: SizeKind
    value: Fraction
    text: str


_TIME = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s)\s*")


def seconds_of(text: str) -> float | None:
    """Seconds of a time such as ``5ms`` or ``0.005s``; None if the text is none."""
    found = _TIME.fullmatch(text)
    return None if found is None else float(found[1]) / (1000 if found[2] == "ms" else 1)


def parse_latency(text: str) -> float:
    """Seconds of a time such as ``5ms`` or ``0.005s``.

    Raises:
        UsageError: If it is none, or not above 0.
    """
    seconds = seconds_of(text)
    if not seconds:
        raise UsageError(f"latency {text!r} is no time; legal: 5ms or 0.005s, for 40 ms of audio")
    return seconds


def are_times(sizes: Sequence[str]) -> bool:
    """Whether sizes are times.

    Raises:
        UsageError: If only some of them are.
    """
    times = [seconds_of(size) is not None for size in sizes]
    if any(times) and not all(times):
        raise UsageError(f"sizes {','.join(sizes)}: either all or none may be times")
    return any(times)


def parse_size(text: str | int) -> Size:
    """Parse `16M`, `500K`, `20MB`, `20MiB`, `25%` or a whole number of non-zero parameters.

    `16B` is 16 bytes, never 16 billion. Upper and lower case of units are equal.

    Raises:
        UsageError: If the text is none of these, or a count of parameters is not whole.
    """
    written = str(text)
    match = _SIZE.fullmatch(written)
    unit = match[2].upper() if match else "?"
    if match and unit == "%":
        return Size("fraction", Fraction(match[1]) / 100, written)
    if match and unit in _BYTE_UNITS:
        return Size("bytes", Fraction(match[1]) * _BYTE_UNITS[unit], written)
    if match and unit in _COUNT_UNITS:
        value = Fraction(match[1]) * _COUNT_UNITS[unit]
        if value.denominator == 1:
            return Size("nonzero", value, written)
        raise UsageError(f"size {written!r} is not a whole number of parameters; {LEGAL_SIZES}")
    raise UsageError(f"size {written!r} is not understood; {LEGAL_SIZES}")


def parse_count(text: str | int, what: str = "size") -> Size:
    """Parse a size that is a number of parameters, or a share of the dense net's parameters.

    Args:
        text: The request.
        what: Name of the request in the error message.

    Raises:
        UsageError: As :func:`parse_size`, and if it is in bytes: these do not depend only on the
            net.
    """
    size = parse_size(text)
    if size.kind == "bytes":
        raise UsageError(
            f"{what} {text!r} is in bytes; legal here: parameters (16M) or a share (25%)"
        )
    return size


def parse_sparsity(value: float | str) -> Size:
    """The request behind `--sparsity 0.8`: that share of the prunable weights is zero.

    Raises:
        UsageError: If `value` is not a finite number.
    """
    try:
        if not math.isfinite(float(value)):
            raise ValueError("not finite")
        # Parsed as text, so that 0.8 is exactly 4/5 and not the nearest binary number. Checked as
        # a float first, so that a huge exponent is rejected instead of expanded to all its digits.
        share = Fraction(str(value)) if abs(float(value)) <= 1 else Fraction(float(value))
    except ValueError as error:
        message = f"sparsity {value!r} is not a number; legal: 0 <= sparsity < 1"
        raise UsageError(message) from error
    return Size("sparsity", share, str(value))
