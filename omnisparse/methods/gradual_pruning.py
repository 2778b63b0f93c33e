"""Gradual magnitude pruning to one size, with labels or a teacher.

While the net trains, sparsity grows along a polynomial from an initial to a final value. Then the
mask stays fixed, and the remaining weights train on. Masked weights are set to exactly zero after
every step, independent of the optimizer's momentum and decay, and have no gradient.

Pruning waits until every matrix that it prunes has begun to learn (a transducer's predictor begins
after ``predictor_warmup`` steps): magnitudes of random weights say nothing. Shares of the run in
``begin`` and ``end`` are shares of what is left from there.

With ``sizes``, one training gives several models: the schedule rests at each of these sizes, and
the net is kept there.

Source: Zhu & Gupta 2017, arXiv:1710.01878, eq. 1; Pang et al. 2018, eq. 12 (initial sparsity 0).
Deviation: by default a pruned weight stays pruned. In the authors' TensorFlow code it keeps its
last value under the mask and may return: ``regrowth``. Either way the weights of a checkpoint are
exactly those that are counted. The matrices are those that a supernet of the same net prunes; of a
net of LSTM layers the paper's, and a transducer's joiner projections.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from omnisparse.data.batching import Batch
from omnisparse.errors import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Share,
    check_ranges,
)
from omnisparse.methods.base import Forward, Loss, Method, first_step
from omnisparse.methods.distillation import DistillationConfig
from omnisparse.methods.weight_masks import WeightMasks
from omnisparse.sparsity.allocation import allocate
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.masks import mask_from_count
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.schedule import sparsity_at
from omnisparse.sparsity.sizes import parse_count

_HIDDEN, _OBJECTIVE, _SCHEDULE = "hidden/", "objective/", "schedule"


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
    """Start of pruning: up to 1 a share of the steps that are left when every pruned part has begun
    to learn, above 1 a number of optimizer steps."""
    end: NonNegativeFloat = 0.7
    """End of pruning, where ``size`` is reached: as ``begin``; 0 prunes everything at once before
    the first step (of a new transducer, when its predictor begins to learn)."""
    sizes: tuple[str | int, ...] = ()
    """Sizes above ``size`` at which the schedule rests and a model is kept, so that one training
    gives them all: ``extract --size`` of the run."""
    hold_fraction: Share = 0.1
    """With ``sizes``: share of the run for which the schedule rests at each."""
    regrowth: bool = False
    """Let a pruned weight keep its last value under the mask and return while masks still change,
    as in the published code; otherwise it stays pruned."""
    frequency: PositiveInt = 10
    """Steps between two masks."""
    exponent: PositiveFloat = 3.0
    """Exponent of the schedule; the published one is cubic."""
    scope: Literal["layer", "global", "lamp"] = "layer"
    """How matrices share the weights to keep: one density for all, or one ranking."""
    prunable: tuple[str, ...] = ()
    """Regular expressions of parameter names to prune; none chooses as every method does: LSTM and
    linear matrices and the encoder's self-attention, no embeddings, decoder attention or output."""
    distillation: DistillationConfig | None = None
    """Learn from a teacher while pruning; null learns from the labels."""

    def __post_init__(self) -> None:
        """Check ranges; the size is checked against the model in ``prepare``."""
        for size in (self.size, *self.sizes):
            parse_count(size)
        check_ranges(self)
        for name in ("begin", "end"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise ValueError(
                    f"{name} is {value}; a share of the run up to 1, or a whole number of steps"
                )


class Stop(NamedTuple):
    """A rest of the schedule, at a size of which a model is kept."""

    name: str
    """Of the model in the run."""
    num_kept: int
    """Prunable weights."""
    start: int
    """Optimizer steps done when the size is reached."""
    end: int
    """Optimizer steps done when the model is kept, and pruning goes on."""


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
        self.weights: WeightMasks
        self.hidden: dict[str, Tensor] = {}
        """Last values of the pruned weights, 0 elsewhere; with ``regrowth`` until ``end``."""
        self.learns_from = self.begin = self.end = 0
        self.final_sparsity = 0.0
        self.stops: tuple[Stop, ...] = ()
        self._max_steps = 0

    def prepare(self, model: nn.Module, *, max_steps: int) -> nn.Module:
        """Compute the size and the schedule for ``model``, and return the module to train.

        Raises:
            ValueError: If a size cannot be reached, the initial sparsity is above it, or the
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
        self._max_steps = max_steps
        self._set_schedule(max_steps, learns_from=min(first_step(model, prunable), max_steps))
        self.weights = WeightMasks(model, list(self.budget.prunable))
        self._update(0)
        return self.objective.prepare(model, max_steps=max_steps)

    def _set_schedule(self, max_steps: int, *, learns_from: int) -> None:
        """Compute the steps of the schedule.

        Raises:
            ValueError: If they do not fit a run of ``max_steps``, or a number of steps is before
                ``learns_from``.
        """
        config = self.config
        self.learns_from = learns_from
        self.begin, self.end = (
            _steps(value, max_steps, learns_from) for value in (config.begin, config.end)
        )
        if self.begin < learns_from:
            raise ValueError(
                f"pruning from step {self.begin} (method.begin) is before step {learns_from}, at "
                f"which a part that is pruned begins to learn (model.predictor_warmup); legal: a "
                f"share of the run, or {learns_from} and more"
            )
        if not self.begin <= self.end <= max_steps:
            raise ValueError(
                f"pruning from step {self.begin} to {self.end} does not fit a run of {max_steps} "
                "steps (method.begin, method.end)"
            )
        hold = round(config.hold_fraction * max_steps)
        if config.sizes and max_steps:
            self.stops = self._make_stops(max(1, hold))

    def _make_stops(self, hold: int) -> tuple[Stop, ...]:
        """Where the schedule rests.

        Raises:
            ValueError: If a size is not above the last, or the rests leave no time to prune.
        """
        config = self.config
        kept = {str(size): self.budget.solve(size) for size in config.sizes}
        last = self.budget.solve(config.size)
        for size, count in kept.items():
            if count <= last:
                raise ValueError(f"sizes: {size} is not above size, which is {config.size}")
        moving = self.end - self.begin - hold * len(kept)
        if moving < len(kept) + 1:
            raise ValueError(
                f"pruning from step {self.begin} to {self.end} has no room for {len(kept)} rests "
                f"of {hold} steps (method.hold_fraction, method.begin, method.end)"
            )
        stops: list[Stop] = []
        span = self.final_sparsity - config.initial_sparsity
        for size, count in sorted(kept.items(), key=lambda item: -item[1]):
            sparsity = 1.0 - count / self.budget.prunable_parameters
            if sparsity < config.initial_sparsity:
                raise ValueError(f"sizes: {size} is above the size at initial_sparsity")
            left = ((self.final_sparsity - sparsity) / span) ** (1 / config.exponent)
            done = math.ceil(moving * (1 - left))
            start = self.begin + done + hold * len(stops)
            if stops:
                start = max(start, stops[-1].end + 1)
            stops.append(Stop(f"size-{size}".replace("%", "pct"), count, start, start + hold))
        return tuple(stops)

    def described(self) -> Mapping[str, Any]:
        """The steps of the schedule, for the run's record."""
        plan: dict[str, Any] = {"begin": self.begin, "end": self.end}
        if self.learns_from:
            plan["learns_from"] = self.learns_from
        if self.stops:
            plan["kept"] = {stop.name: stop.end for stop in self.stops}
        return {"pruning": plan}

    def notes(self) -> Sequence[str]:
        """What the user should know of the schedule."""
        if not self.learns_from:
            return ()
        return (
            f"pruning from step {self.begin} to {self.end}: its shares of the run count from step "
            f"{self.learns_from}, when every part that is pruned has begun to learn",
        )

    def model_to_keep(self, done: int) -> str | None:
        """Name of the model that the run keeps as it is after ``done`` steps; None for none."""
        return next((stop.name for stop in self.stops if stop.end == done), None)

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The present masks by matrix; empty before pruning begins."""
        return self.weights.masks

    def num_kept(self, step: int) -> int:
        """Prunable weights that are kept after ``step`` optimizer steps."""
        if step >= self.end:
            return self.budget.solve(self.config.size)
        rested, most = 0, self.budget.prunable_parameters
        for stop in self.stops:
            if stop.start <= step <= stop.end:
                return stop.num_kept
            if step > stop.end:
                rested, most = rested + stop.end - stop.start, stop.num_kept
        sparsity = sparsity_at(
            step - rested,
            begin=self.begin,
            end=self.end - sum(stop.end - stop.start for stop in self.stops),
            initial=self.config.initial_sparsity,
            final=self.final_sparsity,
            exponent=self.config.exponent,
        )
        return min(most, round((1.0 - sparsity) * self.budget.prunable_parameters))

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
        self.weights.apply()
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
        resting = any(stop.start < done <= stop.end for stop in self.stops)
        due = done == self.end or done in [stop.start for stop in self.stops]
        if not due and (resting or (done - self.begin) % self.config.frequency):
            return
        weights = {fqn: self.model.get_parameter(fqn).detach() for fqn in self.budget.prunable}
        if self.config.regrowth:  # a weight is 0 where its last value is hidden
            weights = {
                fqn: weight + self.hidden[fqn].to(weight.device) if fqn in self.hidden else weight
                for fqn, weight in weights.items()
            }
        counts = allocate(weights, self.num_kept(done), self.config.scope)
        self.weights.masks = {
            fqn: mask_from_count(weight, counts[fqn], name=fqn) for fqn, weight in weights.items()
        }
        if self.config.regrowth:
            self._regrow(weights, is_last=done == self.end)
        self.weights.apply()

    @torch.no_grad()
    def _regrow(self, weights: Mapping[str, Tensor], *, is_last: bool) -> None:
        """Bring back the values of the weights in the mask, and hide the others'."""
        self.hidden = {}
        for fqn, weight in weights.items():
            self.model.get_parameter(fqn).copy_(weight)
            if not is_last:
                self.hidden[fqn] = weight.masked_fill(self.masks[fqn].to(weight.device), 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the present masks, a bit per weight, the schedule, and the objective's state."""
        masks = self.weights.state_dict()
        hidden = {f"{_HIDDEN}{fqn}": values for fqn, values in self.hidden.items()}
        inner = {f"{_OBJECTIVE}{k}": v for k, v in self.objective.state_dict().items()}
        return {_SCHEDULE: torch.tensor([self.begin, self.end])} | masks | hidden | inner

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the masks and the objective's state.

        Raises:
            ValueError: If the masks belong to another model.
        """
        self.weights.load_state_dict(state)
        if self.masks and _SCHEDULE not in state:
            # Of a version whose shares of the run counted from its first step.
            self._set_schedule(self._max_steps, learns_from=0)
        self.hidden = {
            k.removeprefix(_HIDDEN): v for k, v in state.items() if k.startswith(_HIDDEN)
        }
        self.objective.load_state_dict(
            {k.removeprefix(_OBJECTIVE): v for k, v in state.items() if k.startswith(_OBJECTIVE)}
        )


def _steps(value: float, max_steps: int, first: int) -> int:
    """Optimizer steps of a share of what follows step ``first`` (up to 1), or of a number."""
    return first + round(value * (max_steps - first)) if value <= 1 else int(value)
