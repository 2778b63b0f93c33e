"""The rows of Pang et al. 2018, table 3, as run configurations of the same parts.

A row is a method and a size; everything else (corpus, features, batches, optimizer, length) is
that of the base configuration, so that rows differ in nothing but the compression.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError

BaselineMethod = Literal[
    "base",
    "distilled",
    "factored",
    "pruned",
    "factored_distilled",
    "factored_distilled_pruned",
    "supernet",
]
BASELINE_METHODS: tuple[str, ...] = get_args(BaselineMethod)


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
        size: ``25%`` (of the dense net) or ``16M``, as ``--size`` takes it; None keeps the shape
            of ``base`` (and is the only legal value for ``supernet``, which has every size).
        teacher: Run or artifact that is distilled; needed by the rows with ``distilled`` in their
            name, refused by the others but ``pruned``, where it is optional.
        init: Run, artifact or checkpoint folder that the weights start from; None for a fresh
            net. It becomes ``RunConfig.init``, which copies weights of the same shape, and
            factorises those of the dense relative (same cells, no projection) by truncated SVD.
        max_layer_parameters: ``4M``: no recurrent layer has more; with ``size=None`` the widths
            are the largest that hold this.

    Returns:
        The configuration, named ``<base name>-<method>-<size>``, its widths and sizes solved.

    Raises:
        OmnisparseError: If the method is unknown, a teacher is missing or useless, or the size is
            not legal for this net or above the teacher's; one line that names the legal values.
    """
    if method not in BASELINE_METHODS:
        raise OmnisparseError(f"method {method!r} is unknown; legal: {', '.join(BASELINE_METHODS)}")
    raise NotImplementedError
