"""Which subnets a sandwich training trains at which step; what their losses are is told elsewhere.

Source: Yu & Huang 2019 (universally slimmable networks: the sandwich rule) with masks in place of
widths, as in Yang et al. 2022 (Omni-sparsity DNN). A smallest subnet that shrinks as training
goes on is progressive shrinking (Cai et al. 2020, Once-for-All).
"""

from __future__ import annotations

from collections.abc import Sequence

from omnisparse.sparsity.schedule import sparsity_at
from omnisparse.sparsity.space import Distribution, SparsitySpace, SubnetSpec, subnet_generator
from omnisparse.sparsity.supernet import Supernet

_SOON = (1, 3, 10, 30)
"""Steps behind the core before which weights are ranked out of turn."""


class SandwichSchedule:
    """The subnets of every step: a function of (seed, step), equal in every process.

    Args:
        supernet: The net and its subnets.
        max_steps: Steps of the run.
        seed: Seed of the draws.
        min_size: Smallest subnet, as ``--size`` takes it.
        distribution: How random sizes are drawn; see :class:`SparsitySpace`, as for what follows.
        levels: Sizes drawn from when ``distribution`` is ``levels``; none below ``min_size``.
        per_layer: Random subnets draw a sparsity per layer.
        layer_spread: How far densities of layers may differ.
        layer_groups: Regular expressions of matrices that share a density.
        num_layer_levels: Densities in the grid; 0 draws from the whole range.
        warmup_fraction: Share of the run, at its start, that trains only the dense net.
        shrink_fraction: Share of the run over which the smallest subnet shrinks.
        core_fraction: Share of the run, after the warm-up, over which the smallest trains alone.
        refresh_every: Steps between two rankings of the weights.

    Raises:
        ValueError: If ``min_size`` or a level cannot be reached by this model, or a level is below
            ``min_size``.
    """

    def __init__(
        self,
        supernet: Supernet,
        *,
        max_steps: int,
        seed: int,
        min_size: str | int,
        distribution: Distribution = "log_uniform",
        levels: Sequence[str | int] = (),
        per_layer: bool = False,
        layer_spread: float = 1.0,
        layer_groups: Sequence[str] = (),
        num_layer_levels: int = 0,
        warmup_fraction: float = 0.15,
        shrink_fraction: float = 0.5,
        core_fraction: float = 0.0,
        refresh_every: int = 100,
    ) -> None:
        self.supernet = supernet
        self.max_steps = max_steps
        self.seed = seed
        self.refresh_every = refresh_every
        self._min_density = self._density(min_size)
        self.min_spec = supernet.spec_for(min_size)
        """The smallest subnet, once it has shrunk."""
        levels = levels if distribution == "levels" else ()
        self.num_levels = len(levels)
        for level in levels:
            if self._density(level) < self._min_density:
                raise ValueError(f"levels: {level} is below min_size, which is {min_size}")
        budget = supernet.budget
        self.space = SparsitySpace(
            {fqn: budget.shapes[fqn] for fqn in budget.prunable},
            min_density=self._min_density,
            distribution=distribution,
            levels=tuple(self._density(size) for size in levels),
            per_layer=per_layer,
            spread=layer_spread,
            layer_groups=layer_groups,
            num_layer_levels=num_layer_levels,
            block=supernet.block,
        )
        self.warmup_steps = round(warmup_fraction * max_steps)
        self.shrunk_steps = self.warmup_steps + round(shrink_fraction * max_steps)
        self.core_steps = self.warmup_steps + round(core_fraction * max_steps)
        self._ranked_at: int | None = None

    def _density(self, size: str | int) -> float:
        """Share of the prunable weights that ``size`` keeps."""
        budget = self.supernet.budget
        return budget.solve(size) / budget.prunable_parameters

    def refresh_if_due(self, step: int) -> None:
        """Rank the weights anew where the step asks for it, once a step."""
        if self._is_due(step) and self._ranked_at != step:
            self.supernet.refresh()
            self._ranked_at = step

    def _is_due(self, step: int) -> bool:
        """Whether weights are ranked before ``step``.

        Behind the core all others are exactly 0, and ties are broken by index: the next ring of
        subnets would be the first rows of each matrix until they are ranked by what they learned.
        """
        if step < self.warmup_steps:
            return False
        if self.core_steps > self.warmup_steps and step - self.core_steps in _SOON:
            return True
        return (step - self.warmup_steps) % self.refresh_every == 0

    def least_density(self, step: int) -> float:
        """Density of the smallest subnet while it shrinks, in (0, 1]; 0 when it is ``min_size``.

        It changes only when the weights are ranked again, so masks stay valid between rankings.

        Source: the cubic of Zhu & Gupta 2017, eq. 1.
        """
        if step >= self.shrunk_steps:
            return 0.0
        ranked = step - (step - self.warmup_steps) % self.refresh_every
        return 1.0 - sparsity_at(
            min(ranked + self.refresh_every, self.shrunk_steps),
            begin=self.warmup_steps,
            end=self.shrunk_steps,
            initial=0.0,
            final=1.0 - self._min_density,
        )

    def is_small(self, step: int) -> bool:
        """Whether the smallest subnet has its final size and larger nets train beside it."""
        return step >= max(self.core_steps, self.shrunk_steps)

    def smallest(self, step: int) -> SubnetSpec:
        """The smallest subnet of a step."""
        least = self.least_density(step)
        return self.space.at(least) if least else self.min_spec

    def random(self, step: int, index: int) -> SubnetSpec:
        """The ``index``-th member of a step; 0 would be the smallest.

        There may be more of them than a step of one process trains, for processes that train
        others each.
        """
        return self.space.sample(subnet_generator(self.seed, step, index), self.least_density(step))

    def alone(self, step: int) -> SubnetSpec | None:
        """The one net of a step that trains one; None is the dense net.

        From the end of the warm-up on, the dense net and the smallest subnet are drawn as often as
        each level; without levels, as often as any size between.
        """
        if step < self.warmup_steps:
            return None
        import torch

        generator = subnet_generator(self.seed, step, 0)
        choice = int(torch.randint(2 + (self.num_levels or 1), (1,), generator=generator))
        if choice < 2:
            return None if choice == 0 else self.smallest(step)
        return self.space.sample(generator, self.least_density(step))
