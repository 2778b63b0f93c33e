"""``--device`` and ``--jobs``: where a verb measures models, and on how many processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click


def takes_workers(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb ``--device`` and ``--jobs``; it is called with ``workers``."""

    @click.option(
        "--device", default="cpu", show_default=True, metavar="DEVICE",
        help="Where models are computed: cpu, cuda (all GPUs together) or cuda:N.",
    )  # fmt: skip
    @click.option(
        "--jobs", type=click.IntRange(min=1), default=1, show_default=True,
        help="Processes that compute; the texts do not depend on their number.",
    )  # fmt: skip
    @functools.wraps(verb)
    def wrapped(*arguments: Any, device: str, jobs: int, **options: Any) -> Any:
        from omnisparse.evaluation.workers import Workers

        with Workers(jobs, device) as workers:
            return verb(*arguments, workers=workers, **options)

    return wrapped
