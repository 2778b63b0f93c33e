"""Supernet training by the sandwich rule with in-place distillation.

A dense warm-up comes first. With ``core_fraction``, a phase follows in which the smallest subnet is
pruned and trained alone. After that, every step first trains the dense net on the labels of the
whole batch. Then it trains the smallest subnet and some random ones, each on its own part of the
same (equally augmented) batch, distilled from the dense net's detached outputs of the same step.
With the rule ``single``, a step trains one of these nets instead, on the labels of the whole batch.

Source: Yu & Huang 2019 (universally slimmable networks: sandwich rule, in-place distillation);
Yang et al. 2022 (Omni-sparsity DNN, arXiv 2110.08352: masks on each layer of a shared net); for
the core phase Han et al. 2017 (dense-sparse-dense training, arXiv 1607.04381, without a sandwich).
Deviation: the subnets see disjoint parts of the batch, not all of it (``member_share``), and keep
a label term (``label_weight``); Omni-sparsity's own choices are not published in readable form.
Each alternative in the literature is a field of ``SandwichConfig`` and a run of
``recipes/sweeps/ablation.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from omnisparse.data.batching import Batch
from omnisparse.errors import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Range,
    Share,
    check_ranges,
)
from omnisparse.methods.base import Forward, Loss, first_step, forward_batch, label_units
from omnisparse.methods.inplace import Distill, Nodes, Teacher, scaled_dropout, taught
from omnisparse.models.base import ModelOutput
from omnisparse.sparsity.keys import parse_block
from omnisparse.sparsity.patterns import compile_patterns, matched_by_none
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.sandwich_schedule import SandwichSchedule
from omnisparse.sparsity.sizes import parse_count
from omnisparse.sparsity.space import MAX_SPREAD, SubnetSpec, require_layer_levels
from omnisparse.sparsity.supernet import Supernet


@dataclass(frozen=True, kw_only=True, slots=True)
class SandwichConfig:
    """How a supernet is trained."""

    every_size: ClassVar[bool] = True
    """One training gives models of all sizes."""
    kind: Literal["sandwich"] = "sandwich"
    """Selects this method."""
    rule: Literal["sandwich", "single"] = "sandwich"
    """``single``: a step trains one net on the labels of the whole batch: the dense net, that of
    ``min_size`` or one of the levels, each as often; without levels a size between as often.
    Nothing is distilled, and every net has updates of its own, from many utterances. Better than
    ``sandwich`` for a LAS (``convergence_las_voices.yaml``)."""
    min_size: str | int = "6%"
    """Smallest subnet trained, as ``--size`` takes it (non-zeros or share of the dense net)."""
    num_random_subnets: NonNegativeInt = 1
    """Random subnets per step, beside the dense net and the smallest subnet."""
    distribution: Literal["uniform", "log_uniform", "levels"] = "log_uniform"
    """How random sizes are drawn between ``min_size`` and dense."""
    levels: tuple[str | int, ...] = ("12%", "25%", "50%")
    """Sizes drawn from when ``distribution`` is ``levels``; none below ``min_size``."""
    per_layer: bool = False
    """Random subnets draw a sparsity per layer, with the same total, instead of one for all."""
    layer_spread: Annotated[float, Range(minimum=0, maximum=MAX_SPREAD)] = 1.0
    """With ``per_layer``: densities differ from the mean at most by a factor of 1 + this value."""
    layer_groups: tuple[str, ...] = ()
    """With ``per_layer``: regular expressions. Matrices share a density if one expression matches
    the same text in their names (``.+`` gives each its own). Empty: one density per layer."""
    num_layer_levels: int = 0
    """With ``per_layer``: number of densities in the grid, odd; 0 draws from the whole range."""
    warmup_fraction: Share = 0.15
    """Share of the run's steps, at its start, that train only the dense net. A short training needs
    more: subnets that join before the dense net has begun to hear cost all sizes much (0.4 instead
    of 0.15 halved the errors of 14 epochs)."""
    shrink_fraction: Share = 0.5
    """Share of the run's steps, after the warm-up, over which the smallest subnet shrinks from the
    dense net to ``min_size``, with the schedule of gradual pruning; no subnet is smaller. 0: at
    once, which was worse at every size of a LAS."""
    core_fraction: Share = 0.0
    """Share of the run's steps, after the warm-up, over which the smallest subnet trains alone, on
    the labels of the whole batch. All nets contain its weights. All other weights are zero then,
    and grow again when the other nets join. Better for transducers (``transducer_books.yaml``) and
    for a LAS that trains to the end (``convergence_las_voices.yaml``: 0.3); in a short training of
    a LAS it costs the larger sizes much, so the default is 0."""
    core_gradient: Share = 1.0
    """Share of the gradients of all larger nets that the weights of the smallest subnet get, from
    when it has its final size and all nets train. Below 1 they follow the small net more, and the
    larger ones learn with what is theirs alone. 0: only the smallest subnet moves them."""
    member_share: Annotated[float, Range(above=0, maximum=1)] = 0.15
    """Share of the batch that all subnets of a step see together; 1 splits all of it among them.
    Rounded so that each sees one utterance in ``member_period``. Ignored with ``full_batch``."""
    full_batch: bool = False
    """Give every subnet the whole batch, as in the published sandwich (about 4x the cost)."""
    subnet_weight: NonNegativeFloat = 0.1
    """Weight of each subnet's loss; the dense net's weight is 1. A loss is a mean over the tokens
    that its net sees, so with ``1 / member_period`` an utterance has equal weight for all nets."""
    normalise_members: bool = False
    """Divide all weights of a step by their sum, so that more subnets do not give a larger
    gradient; otherwise the gradients are summed."""
    distill: Distill = "posteriors"
    """What a subnet learns from the dense net: posteriors (a transducer's lattice), the outputs
    of the encoder, or both."""
    lattice_nodes: Nodes = "all"
    """Weights of lattice nodes when a transducer's posteriors are distilled: all equal, or each by
    the expected number of the dense net's label alignments through it."""
    distillation_weight: NonNegativeFloat = 1.0
    """Weight of the divergence from the dense net's posteriors, within a subnet's loss."""
    encoder_weight: NonNegativeFloat = 0.1
    """Weight of the distance from the dense net's encoder outputs, within a subnet's loss."""
    divergence: Literal["kl", "alpha"] = "kl"
    """Divergence between posteriors; ``alpha`` takes the larger of two alpha-divergences."""
    alphas: tuple[float, float] = (-1.0, 1.0)
    """The two values of alpha for the divergence ``alpha``; finite and not 0."""
    alpha_clip: Annotated[float, Range(minimum=1)] = 5.0
    """Largest importance weight of a class for the divergence ``alpha``."""
    label_weight: NonNegativeFloat = 0.3
    """Weight of the label loss, within a subnet's loss."""
    subnet_dropout: Literal["same", "scaled", "none"] = "same"
    """Dropout of subnets: that of the dense net, that times the subnet's density, or none."""
    subnets_per_process: bool = False
    """Draw other random subnets on every process: with P processes a step trains P times as many,
    each on 1/P of the batch. Otherwise all draw the same, and the result does not depend on the
    number of processes."""
    refresh_every: PositiveInt = 100
    """Steps between two rankings of the weights by magnitude."""
    straight_through: bool = False
    """Let a subnet's gradient also reach masked weights."""
    block: str = "1x1"
    """Weights kept or dropped together: ``8x1`` is 8 outputs of one input."""
    block_matrices: tuple[str, ...] = ()
    """With blocks: regular expressions of the names of the matrices that have them, such as
    ``^encoder``; all others are pruned weight by weight. Empty: all have them."""
    prunable: tuple[str, ...] = ()
    """Regular expressions of parameter names to prune, in any part of the net; empty means LSTM,
    projection and feed-forward matrices, no attention."""

    @property
    def member_period(self) -> int:
        """A subnet sees one of this number of utterances of a batch (unless ``full_batch``)."""
        members = 1 + self.num_random_subnets
        return max(members, round(members / self.member_share))

    @property
    def mean_passes(self) -> float:
        """Passes (forward and backward) per utterance: mean over a run, at least 1."""
        if self.rule == "single":
            return 1.0
        seen = (1 + self.num_random_subnets) * (1.0 if self.full_batch else 1 / self.member_period)
        return 1 + (1 - self.warmup_fraction - self.core_fraction) * seen

    def __post_init__(self) -> None:
        """Check ranges; sizes are checked against the model in ``prepare``."""
        check_ranges(self)
        left = round(1 - self.warmup_fraction, 9)  # 1 - 0.8 is a little less than 0.2
        for name in ("shrink_fraction", "core_fraction"):
            if getattr(self, name) > left:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; with this warmup_fraction it must be from 0 "
                    f"to {left:g}"
                )
        if not all(math.isfinite(alpha) and alpha != 0 for alpha in self.alphas):
            raise ValueError(f"alphas is {self.alphas}; they must be finite and not 0")
        self._check_subnets()

    def _check_subnets(self) -> None:
        """Check sizes and matrices as far as possible without a model."""
        if parse_block(self.block) == (1, 1) and self.block_matrices:
            raise ValueError(
                f"block_matrices is {self.block_matrices}; with block 1x1 it must be empty"
            )
        require_layer_levels(self.num_layer_levels)
        compile_patterns("prunable", self.prunable)
        compile_patterns("layer group", self.layer_groups)
        compile_patterns("block_matrices", self.block_matrices)
        if self.distribution == "levels" and not self.levels:
            raise ValueError("levels is empty; it must have at least one size, such as 25%")
        for name, sizes in (("min_size", (self.min_size,)), ("levels", self.levels)):
            for size in sizes:
                parse_count(size, name)


_SCHEDULE_FIELDS = (
    *("min_size", "distribution", "levels", "per_layer", "layer_spread", "layer_groups"),
    *("num_layer_levels", "warmup_fraction", "shrink_fraction", "core_fraction", "refresh_every"),
)
"""Fields of a configuration that :class:`SandwichSchedule` takes under the same names."""


class Sandwich:
    """The sandwich step (see the module's docstring); the only optimizer state is the dense net's.

    Args:
        config: Its configuration.
        seed: Seed of the subnet draws, the same on every process.
    """

    def __init__(self, config: SandwichConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.supernet: Supernet
        self.schedule: SandwichSchedule

    def prepare(self, model: nn.Module, *, max_steps: int) -> Supernet:
        """Wrap ``model`` into a supernet and fix the range of subnets.

        Raises:
            ValueError: If ``min_size`` or a level cannot be reached by this model, or a level is
                below ``min_size``.
        """
        config = self.config
        prunable = find_prunable(model, include=config.prunable)
        self.supernet = Supernet(
            model,
            prunable=prunable,
            block=parse_block(config.block),
            single=matched_by_none(prunable, config.block_matrices),
            straight_through=config.straight_through,
        )
        self.schedule = SandwichSchedule(
            self.supernet,
            max_steps=max_steps,
            seed=self.seed,
            **{name: getattr(config, name) for name in _SCHEDULE_FIELDS},
        )
        return self.supernet

    def notes(self) -> Sequence[str]:
        """Whether a subnet is chosen before all its parts have begun to learn."""
        begins = first_step(self.supernet.model, self.supernet.prunable)
        if self.schedule.warmup_steps >= min(begins, self.schedule.max_steps):
            return ()
        return (
            f"subnets are chosen from step {self.schedule.warmup_steps} (method.warmup_fraction), "
            f"and a part that is pruned begins to learn only at step {begins} "
            "(model.predictor_warmup)",
        )

    @property
    def num_subnets(self) -> int:
        """Subnets per step when all nets train, without the dense net."""
        return 1 + self.config.num_random_subnets

    def num_losses(self, step: int) -> int:
        """Return 1 while one net trains alone, then 1 + the number of subnets."""
        return 1 if self._trains_one(step) else 1 + self.num_subnets

    def _trains_one(self, step: int) -> bool:
        """Whether a step trains one net: in the phases before the sandwich, or always."""
        return step < self.schedule.core_steps or self.config.rule == "single"

    def units(self, batch: Batch, step: int) -> Sequence[float]:
        """Label units of the whole batch, then of each subnet's part of it."""
        if self._trains_one(step):
            return (label_units(batch),)
        counts = batch.token_lengths.tolist()
        shares = []
        for index in range(self.num_subnets):
            rows, here = self._member_rows(batch, step, index)
            shares.append(here * float(sum(counts[row] + 1 for row in rows.tolist())))
        return (label_units(batch), *shares)

    def losses(self, forward: Forward, batch: Batch, step: int) -> Iterator[Loss]:
        """Yield the dense net's loss, then each subnet's; or that of the one that trains alone."""
        self.schedule.refresh_if_due(step)  # once, in however many parts a batch is computed
        if step < self.schedule.core_steps:
            name, spec = "dense", None
            if step >= self.schedule.warmup_steps:
                name, spec = "smallest", self.schedule.smallest(step)
            yield _label_loss(name, self._forward(forward, batch, step, spec), batch)
        elif self._trains_one(step):
            spec = self.schedule.alone(step)
            small = spec == self.schedule.smallest(step)
            name = "dense" if spec is None else "smallest" if small else "random_0"
            yield _label_loss(name, self._forward(forward, batch, step, spec), batch)
        else:
            yield from self._sandwich(forward, batch, step)
        self.supernet.activate(None)

    def _sandwich(self, forward: Forward, batch: Batch, step: int) -> Iterator[Loss]:
        config = self.config
        weights = 1.0 + config.subnet_weight * self.num_subnets
        scale = 1 / weights if config.normalise_members else 1.0
        output = self._forward(forward, batch, step, None)
        parts = taught(config.distill, config.distillation_weight, config.encoder_weight)
        teacher = Teacher.of(output, parts, config.lattice_nodes)
        loss = _label_loss("dense", output, batch, scale)
        del output  # what the teacher does not need is freed during the backward pass
        yield loss
        del loss
        for index in range(self.num_subnets):
            yield self._subnet_loss(forward, batch, teacher, step, index, scale)

    def _forward(
        self, forward: Forward, batch: Batch, step: int, spec: SubnetSpec | None
    ) -> ModelOutput:
        self.supernet.activate(spec)
        factor = 1.0 if spec is None else self._dropout_factor(spec)
        with scaled_dropout(self.supernet.model, factor), self._protected(step):
            return forward_batch(forward, batch)

    def _protected(self, step: int) -> AbstractContextManager[None]:
        """Protection of the smallest subnet's weights, while larger nets run forward."""
        if self.config.core_gradient == 1.0 or not self.schedule.is_small(step):
            return nullcontext()
        return self.supernet.protected(self.schedule.min_spec, self.config.core_gradient)

    def _subnet_loss(
        self,
        forward: Forward,
        batch: Batch,
        teacher: Teacher,
        step: int,
        index: int,
        scale: float,
    ) -> Loss:
        if index == 0:
            name, spec = "smallest", self.schedule.smallest(step)
        else:
            name = f"random_{index - 1}"
            own = process_number() * self.num_subnets if self.config.subnets_per_process else 0
            spec = self.schedule.random(step, index + own)
        rows, here = self._member_rows(batch, step, index)
        part = batch.select(rows)
        output = self._forward(forward, part, step, spec)
        config = self.config
        distilled = teacher.select(rows).distance(
            output,
            posterior_weight=config.distillation_weight,
            encoder_weight=config.encoder_weight,
            alphas=config.alphas if config.divergence == "alpha" else None,
            clip=config.alpha_clip,
        )
        value = config.label_weight * output.label_loss_sum + distilled
        weight = config.subnet_weight * scale
        return Loss(name, value * here, output.num_units * here, weight, len(rows) * here)

    def _dropout_factor(self, spec: SubnetSpec) -> float:
        """Factor of a subnet's dropout."""
        if self.config.subnet_dropout == "scaled":
            numel = self.supernet.budget.prunable
            return sum(spec.counts(numel).values()) / sum(numel.values())
        return 1.0 if self.config.subnet_dropout == "same" else 0.0

    def _member_rows(self, batch: Batch, step: int, index: int) -> tuple[Tensor, int]:
        """Rows of ``batch`` that subnet ``index`` sees, and a weight: 0 if they only fill in.

        The choice depends only on the position in the global batch, so any number of processes
        gives the same parts. It rotates with the step.
        """
        if self.config.full_batch:
            return torch.arange(len(batch.ids), device=batch.positions.device), 1
        turns = (batch.positions + step) % self.config.member_period
        rows = torch.nonzero(turns == index).flatten()
        if rows.numel():
            return rows, 1
        # A process without a row of this subnet still runs, with weight 0: all must synchronise.
        return torch.zeros(1, dtype=torch.long, device=rows.device), 0

    def on_step_end(self, step: int) -> None:
        """Set all weights outside the smallest subnet to zero while it trains alone.

        Otherwise do nothing: masks follow the ranking, which is refreshed within the step.
        """
        if self.schedule.warmup_steps <= step < self.schedule.core_steps:
            self.supernet.clear(self.schedule.smallest(step))

    def metrics(self) -> Mapping[str, float]:
        """How much the last ranking changed the masks; empty before the second ranking."""
        rate = self.supernet.mask_flip_rate
        return {} if rate is None else {"mask_flip_rate": rate}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the present ranking; it was made from earlier weights, which are gone."""
        return self.supernet.ranking_state()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the present ranking."""
        self.supernet.load_ranking_state(state)


def process_number() -> int:
    """Number of this process of a training, from 0."""
    from torch import distributed

    on = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if on else 0


def _label_loss(name: str, output: ModelOutput, batch: Batch, scale: float = 1.0) -> Loss:
    return Loss(name, output.label_loss_sum, output.num_units, scale, len(batch.ids))
