"""The rows of Pang et al. 2018, table 3, as run configurations of the same parts.

A row is a method and a size; everything else (corpus, features, batches, optimizer, length) is
that of the base configuration, so that rows differ in nothing but the compression.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.methods import DenseConfig, SandwichConfig

BASELINE_METHODS: tuple[str, ...] = ("base", "supernet")


def baseline_config(
    base: RunConfig,
    *,
    method: str,
    size: str | None,
    teacher: Path | None,
    init: Path | None,
    max_layer_parameters: str | None = None,
) -> RunConfig:
    """Return the run that trains one row at one size.

    Args:
        base: The dense net (its ``model`` is the net of 100 %) and everything that all rows share.
        method: One of ``BASELINE_METHODS``.
        size: Must be None.
        teacher: Must be None.
        init: Must be None.
        max_layer_parameters: Must be None.

    Raises:
        OmnisparseError: If the method is unknown or one of the others is given.
    """
    if method not in BASELINE_METHODS:
        raise OmnisparseError(f"method {method!r} is unknown; legal: {', '.join(BASELINE_METHODS)}")
    if any(value is not None for value in (size, teacher, init, max_layer_parameters)):
        raise OmnisparseError(f"{method} takes no size, teacher, init or layer limit")
    if method == "base":
        chosen: DenseConfig | SandwichConfig = DenseConfig()
    else:
        kept = isinstance(base.method, SandwichConfig)
        chosen = base.method if kept else SandwichConfig()
    return dataclasses.replace(base, name=f"{base.name}-{method}", method=chosen)
