"""Other weights of a run than its last: a moving average, a mean of checkpoints, the best on dev.

Each is written beside the run as a run directory of its own, `weights/ema`, `weights/average` and
`weights/best`, so that whatever reads a run reads them, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnisparse.sparsity.sharded_tensors import shared_like
from omnisparse.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint

_FOLDER = "weights"
_DESCRIBED_BY = ("config.yaml", "model.json", "tokenizer.model", "tokens.txt")


Weights = Mapping[str, Tensor]
"""Weights by name."""


class MovingAverage:
    """Exponential moving average of weights: ``average = d average + (1 - d) weights`` a step.

    The decay grows from 0 to d over the first steps, ``min(d, (1 + n) / (10 + n))``, so that the
    average does not remember the initial weights.

    Args:
        weights: By name; their values now are the average's first.
        decay: d, in (0, 1).
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.averages = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Add the weights behind ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        present = [weights[name].detach() for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), present, 1 - decay)

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Put back the averages of a checkpoint, or begin anew from its weights."""
        for name, average in self.averages.items():
            average.copy_(shared_like(averages[name], average))


def mean_of_checkpoints(root: Path, number: int) -> dict[str, Tensor]:
    """Mean of the weights of the newest checkpoints.

    Args:
        root: The run's ``checkpoints``.
        number: Checkpoints to take, at least 1; fewer where there are fewer.

    Returns:
        Weights by name, summed in float64.
    """
    sums: dict[str, Tensor] = {}
    paths = list_checkpoints(root)[-number:]
    dtypes: dict[str, torch.dtype] = {}
    for path in paths:
        for name, tensor in load_checkpoint(path).tensors["model"].items():
            dtypes[name] = tensor.dtype
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
    return {name: (total / len(paths)).to(dtypes[name]) for name, total in sums.items()}


def averages(
    run: Path, whole: Weights, average: Weights | None, number: int
) -> Iterator[tuple[str, Weights]]:
    """Names and weights of the averages of a run that has taken all its steps.

    Args:
        run: The run; its checkpoints are read.
        whole: Weights and buffers of the net; the buffers are taken from here.
        average: The moving average of the weights, if there is one.
        number: Newest checkpoints to take the mean of; below 2 for none.
    """
    if average is not None:
        yield "ema", {**whole, **average}
    if number > 1:
        yield "average", mean_of_checkpoints(run / "checkpoints", number)


def write_variant(
    run: Path,
    name: str,
    weights: Mapping[str, Tensor],
    *,
    last: Mapping[str, Tensor],
    step: int,
    state: Mapping[str, Any],
) -> Path:
    """Write weights as a run directory below ``run``; one that is there already is replaced.

    Args:
        run: The run.
        name: ``ema``, ``average`` or ``best``.
        weights: To write.
        last: The net's own weights: where they are exactly 0, a pruned net has no weight, and so
            has none here.
        step: Optimizer steps done.
        state: Of the run's checkpoint; a list of what the weights are is added.

    Returns:
        Its folder.
    """
    folder = run / _FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in _DESCRIBED_BY:
        if (run / file).is_file():
            shutil.copy2(run / file, folder / file)
    kept = {
        key: torch.where(last[key].cpu() == 0, torch.zeros_like(value), value)
        for key, value in ((key, value.detach().cpu()) for key, value in weights.items())
    }
    save_checkpoint(
        folder / "checkpoints",
        step=step,
        tensors={"model": kept},
        state={**state, "weights": name},
        keep=1,
    )
    return folder
