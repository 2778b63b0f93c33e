"""``--weights``: which weights of a run a verb reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

WEIGHTS = ("last", "ema", "average", "best")


def takes_weights(parameter: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb ``--weights``.

    Args:
        parameter: Its parameter that names a run, or several; None there is ``runs/latest``.
    """

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--weights", type=click.Choice(WEIGHTS), default="last", show_default=True,
            help="Weights of a run: its last, their moving average, the mean of its last "
            "checkpoints, or those of the lowest dev WER.",
        )  # fmt: skip
        @functools.wraps(verb)
        def wrapped(*arguments: Any, weights: str, **options: Any) -> Any:
            if weights != "last":
                options[parameter] = _chosen(options[parameter], weights)
            return verb(*arguments, **options)

        return wrapped

    return decorate


def _chosen(given: Path | tuple[Path, ...] | None, weights: str) -> Path | tuple[Path, ...]:
    from omnisparse.runs.directory import latest_run
    from omnisparse.runs.weights import weights_of

    if isinstance(given, tuple):
        return tuple(weights_of(path, weights) for path in given)
    return weights_of(latest_run() if given is None else given, weights)
