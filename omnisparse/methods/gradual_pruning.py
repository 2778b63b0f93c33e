"""Gradual magnitude pruning to one size, with labels or a teacher.

While the net trains, sparsity grows along a polynomial from an initial to a final value. Then the
mask stays fixed, and the remaining weights train on. Masked weights are set to exactly zero after
every step, independent of the optimizer's momentum and decay, and have no gradient.

Source: Zhu & Gupta 2017, arXiv:1710.01878, eq. 1; Pang et al. 2018, eq. 12 (initial sparsity 0),
on the LSTM matrices of encoder and decoder only.
Deviation: a pruned weight stays pruned. In the authors' TensorFlow code it keeps its last value
under the mask and may return. Here the weights of a checkpoint are exactly those that are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from omnisparse.data.batching import Batch
from omnisparse.errors import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    check_ranges,
)
from omnisparse.methods.base import Forward, Loss, Method
from omnisparse.methods.distillation import DistillationConfig
from omnisparse.sparsity.allocation import allocate
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.masks import mask_from_count
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.schedule import sparsity_at
from omnisparse.sparsity.sizes import parse_count

LSTM_MATRICES = (r"weight_(ih|hh|hr)_l\d+$",)
"""The matrices that Pang et al. prune: those of LSTM and LSTMP layers only."""

_MASK, _OBJECTIVE = "mask/", "objective/"


@dataclass(frozen=True, kw_only=True, slots=True)
class GradualPruningConfig:
    """Target size, schedule and matrices of the pruning."""

    kind: Literal["gradual_pruning"] = "gradual_pruning"
    """Selects this method."""
    size: str | int = "25%"
    """Non-zeros at the end, as ``--size`` takes it: ``16M`` or a share of the dense net."""
    initial_sparsity: Probability = 0.0
    """Sparsity of the prunable weights at ``begin``, at most that of ``size``."""
    begin: NonNegativeFloat = 0.1
    """Start of pruning: up to 1 a share of the run, above 1 a number of optimizer steps."""
    end: NonNegativeFloat = 0.7
    """End of pruning, where ``size`` is reached: up to 1 a share of the run, above 1 a number of
    steps; 0 prunes everything at once before the first step."""
    frequency: PositiveInt = 10
    """Steps between two masks."""
    exponent: PositiveFloat = 3.0
    """Exponent of the schedule; the published one is cubic."""
    scope: Literal["layer", "global", "lamp"] = "layer"
    """How matrices share the weights to keep: one density for all, or one ranking."""
    prunable: tuple[str, ...] = LSTM_MATRICES
    """Regular expressions of parameter names to prune; none chooses as the sandwich does: LSTM and
    linear matrices but embeddings, attention and the output."""
    distillation: DistillationConfig | None = None
    """Learn from a teacher while pruning; null learns from the labels."""

    def __post_init__(self) -> None:
        """Check ranges; the size is checked against the model in ``prepare``."""
        parse_count(self.size)
        check_ranges(self)
        for name in ("begin", "end"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise ValueError(
                    f"{name} is {value}; a share of the run up to 1, or a whole number of steps"
                )


class GradualPruning:
    """Masks that become sparser while the net trains with the losses of another method.

    Args:
        config: Its configuration.
        objective: Source of the losses: ``Dense``, or ``Distillation``.
    """

    def __init__(self, config: GradualPruningConfig, objective: Method) -> None:
        self.config = config
        self.objective = objective
        self.model: nn.Module
        self.budget: Budget
        self.masks: dict[str, Tensor] = {}
        self.begin = self.end = 0
        self.final_sparsity = 0.0

    def prepare(self, model: nn.Module, *, max_steps: int) -> nn.Module:
        """Compute the size and the schedule for ``model``, and return the module to train.

        Raises:
            ValueError: If the size cannot be reached, the initial sparsity is above it, or the
                schedule does not fit the run.
        """
        config = self.config
        self.model = model
        prunable = find_prunable(model, include=config.prunable)
        self.budget = Budget.of(model, prunable)
        kept = self.budget.solve(config.size)
        self.final_sparsity = 1.0 - kept / self.budget.prunable_parameters
        if config.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"initial_sparsity is {config.initial_sparsity}; it must be at most "
                f"{self.final_sparsity:.4f}, the sparsity of size {config.size!r}"
            )
        self.begin, self.end = (_steps(value, max_steps) for value in (config.begin, config.end))
        if not self.begin <= self.end <= max_steps:
            raise ValueError(
                f"pruning from step {self.begin} to {self.end} does not fit a run of {max_steps} "
                "steps (method.begin, method.end)"
            )
        for fqn in prunable:
            hook = self._hide_gradient(fqn)
            model.get_parameter(fqn).register_hook(hook)  # type: ignore[no-untyped-call]
        self._update(0)
        return self.objective.prepare(model, max_steps=max_steps)

    def num_kept(self, step: int) -> int:
        """Prunable weights that are kept after ``step`` optimizer steps."""
        if step >= self.end:
            return self.budget.solve(self.config.size)
        sparsity = sparsity_at(
            step,
            begin=self.begin,
            end=self.end,
            initial=self.config.initial_sparsity,
            final=self.final_sparsity,
            exponent=self.config.exponent,
        )
        return round((1.0 - sparsity) * self.budget.prunable_parameters)

    def num_losses(self, step: int) -> int:
        """The number of the objective's losses."""
        return self.objective.num_losses(step)

    def units(self, batch: Batch, step: int) -> Sequence[float]:
        """Those of the objective."""
        return self.objective.units(batch, step)

    def losses(self, forward: Forward, batch: Batch, step: int) -> Iterator[Loss]:
        """Yield the objective's losses; the weights are masked already."""
        yield from self.objective.losses(forward, batch, step)

    def on_step_end(self, step: int) -> None:
        """Set masked weights to zero again, and make the mask sparser if the schedule says so."""
        self._apply()
        self._update(step + 1)
        self.objective.on_step_end(step)

    def metrics(self) -> Mapping[str, float]:
        """Share of the prunable weights that is masked, and the objective's metrics."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        whole = self.budget.prunable_parameters
        sparsity = 1.0 - kept / whole if self.masks else 0.0
        return {"sparsity": sparsity, **self.objective.metrics()}

    def _update(self, done: int) -> None:
        """Make new masks if the schedule has a point after ``done`` steps."""
        if not self.begin <= done <= self.end:
            return
        if done != self.end and (done - self.begin) % self.config.frequency:
            return
        weights = {fqn: self.model.get_parameter(fqn).detach() for fqn in self.budget.prunable}
        counts = allocate(weights, self.num_kept(done), self.config.scope)
        self.masks = {
            fqn: mask_from_count(weight, counts[fqn], name=fqn) for fqn, weight in weights.items()
        }
        self._apply()

    @torch.no_grad()
    def _apply(self) -> None:
        for fqn, mask in self.masks.items():
            parameter = self.model.get_parameter(fqn)
            if mask.device != parameter.device:
                mask = self.masks[fqn] = mask.to(parameter.device)
            # Not a product: a masked weight that overflowed must not become NaN.
            parameter.masked_fill_(~mask, 0.0)

    def _hide_gradient(self, fqn: str) -> object:
        """A hook that keeps masked weights out of the gradient, its norm and the moments."""

        def hide(gradient: Tensor) -> Tensor:
            mask = self.masks.get(fqn)
            return gradient if mask is None else gradient * mask.to(gradient.device)

        return hide

    def state_dict(self) -> dict[str, Tensor]:
        """Return the present masks, a bit per weight, and the objective's state."""
        masks = {f"{_MASK}{fqn}": _pack(mask) for fqn, mask in self.masks.items()}
        inner = {f"{_OBJECTIVE}{k}": v for k, v in self.objective.state_dict().items()}
        return masks | inner

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the masks and the objective's state.

        Raises:
            ValueError: If the masks belong to another model.
        """
        shapes = self.budget.shapes
        found = {k.removeprefix(_MASK): v for k, v in state.items() if k.startswith(_MASK)}
        if found and found.keys() != self.budget.prunable.keys():
            raise ValueError(f"the checkpoint has masks of other matrices: {list(found)}")
        self.masks = {fqn: _unpack(bits, shapes[fqn]) for fqn, bits in found.items()}
        self._apply()
        self.objective.load_state_dict(
            {k.removeprefix(_OBJECTIVE): v for k, v in state.items() if k.startswith(_OBJECTIVE)}
        )


def _steps(value: float, max_steps: int) -> int:
    """Optimizer steps of a share of the run (up to 1) or of a number of steps."""
    return round(value * max_steps) if value <= 1 else int(value)


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=None, bitorder="little"))


def _unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = int(np.prod(shape))
    flat = np.unpackbits(bits.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(flat.astype(bool).reshape(shape))
