"""Regular expressions of parameter names, as users write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


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


def matched_by_none(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names in which no expression of ``block_matrices`` is found; none without expressions.

    Args:
        names: Names of the prunable matrices.
        patterns: Regular expressions.

    Raises:
        ValueError: If one is malformed, or found in no name.
    """
    compiled = compile_patterns("block_matrices", patterns)
    for pattern in compiled:
        if not any(pattern.search(name) for name in names):
            raise ValueError(
                f"block_matrices: {pattern.pattern!r} matches none of: {', '.join(names)}"
            )
    if not compiled:
        return []
    return [name for name in names if not any(pattern.search(name) for pattern in compiled)]
