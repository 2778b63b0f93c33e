"""The sandwich step for a training loop of your own, of a net that we know nothing of.

    supernet = Supernet(model)
    sandwich = SandwichTraining(supernet, max_steps=1000)
    for step, (inputs, labels) in enumerate(batches):
        for net in sandwich.nets(step):
            outputs = supernet(inputs)
            net.loss(cross_entropy(outputs, labels), outputs).backward()
        adam.step()
        adam.zero_grad()

The recipes of this package train by :class:`omnisparse.methods.sandwich.Sandwich`, which has the
same subnets at the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from omnisparse.errors import NonNegativeFloat, PositiveInt, Share, check_ranges
from omnisparse.generic.statistics import frozen_statistics
from omnisparse.sparsity.sandwich_schedule import SandwichSchedule
from omnisparse.sparsity.space import SubnetSpec
from omnisparse.sparsity.supernet import Supernet

Distance = Callable[[Tensor, Tensor], Tensor]
"""``(student, teacher)``, both outputs of the net, to a scalar."""


def softmax_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of a subnet's classes from the dense net's.

    Args:
        student: ``[..., classes]`` logits.
        teacher: Likewise.

    Returns:
        Scalar in nats, a mean over all positions.

    Source: Hinton et al. 2015, arXiv:1503.02531, at temperature 1.
    """
    classes = student.size(-1)
    return F.kl_div(
        student.float().log_softmax(-1).reshape(-1, classes),
        teacher.float().log_softmax(-1).reshape(-1, classes),
        reduction="batchmean",
        log_target=True,
    )


@dataclass
class Member:
    """One net of a step, which is active while the loop is at it."""

    name: str
    """``dense``, ``smallest``, ``random_0`` and on."""

    spec: SubnetSpec | None
    """The subnet; None is the dense net."""

    training: SandwichTraining = field(repr=False)

    def loss(self, label_loss: Tensor, outputs: Tensor | None = None) -> Tensor:
        """What to call ``backward`` on, or to add up over the nets of a step.

        Args:
            label_loss: Scalar: your loss of this net's outputs.
            outputs: The outputs from which the other nets learn, and by which this one learns from
                the dense net: logits, for the default distance. None: no distillation.

        Raises:
            ValueError: If a subnet has outputs and the dense net of the step gave none.
        """
        own = self.training
        if self.spec is None:
            own.teacher = None if outputs is None else outputs.detach()
            return label_loss
        total = own.label_weight * label_loss if outputs is not None else label_loss
        if outputs is not None:
            if own.teacher is None:
                raise ValueError(
                    f"{self.name} was given outputs, but the dense net of this step gave none: "
                    "give them for every net, or for none"
                )
            total = total + own.distillation_weight * own.distance(outputs, own.teacher)
        return own.subnet_weight * total


@dataclass(kw_only=True)
class _Settings:
    """Numbers of a sandwich training with their legal ranges."""

    max_steps: PositiveInt
    num_random_subnets: PositiveInt
    warmup_fraction: Share
    shrink_fraction: Share
    subnet_weight: NonNegativeFloat
    label_weight: NonNegativeFloat
    distillation_weight: NonNegativeFloat
    refresh_every: PositiveInt


class SandwichTraining:
    """The nets of every step of your own training loop, and their losses.

    The dense net trains alone at first. Then every step trains the dense net, the smallest subnet,
    which shrinks to its size, and random ones between; each subnet learns from the labels and from
    the dense net's outputs of the same step.

    Args:
        supernet: The net.
        max_steps: Steps of your loop.
        min_size: Smallest size to train, as ``omnisparse extract --size`` takes it: ``10%``,
            ``500K`` non-zeros, or a whole number of them.
        num_random_subnets: Random subnets of a step, >= 1.
        warmup_fraction: Share of the steps, at the start, that train only the dense net. From a
            trained net, 0 is enough.
        shrink_fraction: Share of the steps, after these, over which the smallest subnet shrinks.
        subnet_weight: Weight of each subnet's loss; the dense net's is 1.
        label_weight: Weight of the label loss within a subnet's loss.
        distillation_weight: Weight of the distance from the dense net's outputs.
        distance: ``(student, teacher)`` to a scalar; by default :func:`softmax_divergence`.
        refresh_every: Steps between two rankings of the weights; None for a thirtieth of the run.
        per_layer: Random subnets draw a sparsity per layer, for a search over layers later.
        seed: Seed of the draws.

    Raises:
        ValueError: If a number is out of its range, or the model cannot have ``min_size``; names
            the legal values.

    Deviation: as in :mod:`omnisparse.methods.sandwich`, subnets keep a label term. Here every
    net sees the whole batch, as in Yu & Huang 2019.
    """

    def __init__(
        self,
        supernet: Supernet,
        *,
        max_steps: int,
        min_size: str | int = "10%",
        num_random_subnets: int = 1,
        warmup_fraction: float = 0.15,
        shrink_fraction: float = 0.5,
        subnet_weight: float = 0.5,
        label_weight: float = 0.3,
        distillation_weight: float = 1.0,
        distance: Distance = softmax_divergence,
        refresh_every: int | None = None,
        per_layer: bool = False,
        seed: int = 0,
    ) -> None:
        if refresh_every is None:
            refresh_every = max(1, max_steps // 30)
        check_ranges(
            _Settings(
                max_steps=max_steps,
                num_random_subnets=num_random_subnets,
                warmup_fraction=warmup_fraction,
                shrink_fraction=shrink_fraction,
                subnet_weight=subnet_weight,
                label_weight=label_weight,
                distillation_weight=distillation_weight,
                refresh_every=refresh_every,
            )
        )
        if warmup_fraction + shrink_fraction > 1:
            raise ValueError(
                f"shrink_fraction is {shrink_fraction}; with this warmup_fraction it must be from "
                f"0 to {1 - warmup_fraction:g}"
            )
        self.supernet = supernet
        self.max_steps = max_steps
        self.num_random_subnets = num_random_subnets
        self.subnet_weight = subnet_weight
        self.label_weight = label_weight
        self.distillation_weight = distillation_weight
        self.distance = distance
        self.teacher: Tensor | None = None
        """Outputs of the dense net of the present step, detached."""
        self.schedule = SandwichSchedule(
            supernet,
            max_steps=max_steps,
            seed=seed,
            min_size=min_size,
            per_layer=per_layer,
            warmup_fraction=warmup_fraction,
            shrink_fraction=shrink_fraction,
            refresh_every=refresh_every,
        )

    def nets(self, step: int) -> Iterator[Member]:
        """The nets of a step, the dense one first; each is active until the next is asked for.

        While a subnet is active, batch normalisation uses the batch, but does not change its
        running statistics: they stay those of the dense net.

        Args:
            step: Counts from 0.
        """
        self.schedule.refresh_if_due(step)
        self.teacher = None
        self.supernet.activate(None)
        yield Member("dense", None, self)
        if step < self.schedule.warmup_steps:
            return
        try:
            for index in range(1 + self.num_random_subnets):
                if index == 0:
                    name, spec = "smallest", self.schedule.smallest(step)
                else:
                    name, spec = f"random_{index - 1}", self.schedule.random(step, index)
                self.supernet.activate(spec)
                with frozen_statistics(self.supernet.model):
                    yield Member(name, spec, self)
        finally:
            self.supernet.activate(None)
            self.teacher = None

    def total_loss(self, step: int, compute: Callable[[], tuple[Tensor, Tensor | None]]) -> Tensor:
        """The losses of a step as one, for trainers that call ``backward`` themselves.

        Needs the memory of all nets at once; :meth:`nets` needs that of one.

        Args:
            step: Counts from 0.
            compute: Runs the supernet and returns its label loss and outputs; called for each net.
        """
        return torch.stack([net.loss(*compute()) for net in self.nets(step)]).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """The present ranking of the weights, which a resumed training needs beside them."""
        return self.supernet.ranking_state()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over :meth:`state_dict`.

        Raises:
            ValueError: If it belongs to other matrices.
        """
        self.supernet.load_ranking_state(state)
