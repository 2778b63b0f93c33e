"""``omnisparse.extract``: one size, of a run of ours or of any module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.pipeline import extract as of_run

if TYPE_CHECKING:
    from torch import nn


def extract(run: Path | str | nn.Module | None = None, **options: Any) -> dict[str, Any]:
    """Write a deployable model of any size.

    Args:
        run: Directory of a run (None for ``runs/latest``); or a module, or its ``Supernet``.
        **options: ``size``, ``sparsity``, ``out``, ``precision`` and on: those of
            :func:`omnisparse.pipeline.extract.extract` for a run, and of
            :func:`omnisparse.generic.packed.extract_module` for a module.

    Returns:
        ``path, parameters, nonzero, sparsity, bytes, seconds, warnings, layers`` and on, as counted
        in what was written.

    Raises:
        ValueError: If the request cannot be met; names the legal range.
        OmnisparseError: If something cannot be read or written.
    """
    if run is None or isinstance(run, str | Path):
        return of_run.extract(run, **options)
    from omnisparse.generic.packed import extract_module

    return extract_module(run, **options)
