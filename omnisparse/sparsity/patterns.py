"""Regular expressions of parameter names, as users write them."""

from __future__ import annotations

import re
from collections.abc import Iterable


def compile_patterns(what: str, patterns: Iterable[str]) -> list[re.Pattern[str]]:
    """Compile the expressions of an option.

    Args:
        what: Name of such an expression in the error message.
        patterns: Regular expressions.

    Raises:
        ValueError: If one is malformed.
    """
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        message = f"{what} {error.pattern!r} is not a regular expression: {error}"
        raise ValueError(message) from error
