"""Descriptions of subnets, and the space from which training draws them."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from omnisparse.sparsity.budget import (
    allocate_proportional,
    check_names,
    floors_of,
)
from omnisparse.sparsity.groups import group_matrices

if TYPE_CHECKING:
    import torch

MAX_SPREAD = 1000.0
"""Largest spread of densities, so that no layer gets a millionth of another layer's density."""

Distribution = Literal["log_uniform", "uniform", "levels"]


@dataclass(frozen=True, slots=True)
class SubnetSpec:
    """One subnet: the sparsity of every prunable matrix.

    Attributes:
        sparsity: Share of zeros in [0, 1], by fully qualified name; matrices not named are
            whole. Hashable and comparable by content.

    Raises:
        ValueError: If a sparsity is outside [0, 1] or not a number.
    """

    sparsity: Mapping[str, float]

    def __post_init__(self) -> None:
        for fqn, value in self.sparsity.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise ValueError(f"sparsity of {fqn} is {value!r}; legal: 0 <= sparsity <= 1")
        exact = {fqn: float(value) for fqn, value in self.sparsity.items()}
        object.__setattr__(self, "sparsity", MappingProxyType(exact))

    def __hash__(self) -> int:
        return hash(frozenset(self.sparsity.items()))

    def __reduce__(self) -> tuple[type[SubnetSpec], tuple[dict[str, float]]]:
        return SubnetSpec, (dict(self.sparsity),)

    @classmethod
    def from_counts(cls, kept: Mapping[str, int], numel: Mapping[str, int]) -> SubnetSpec:
        """Spec that keeps exactly `kept[fqn]` of `numel[fqn]` weights."""
        return cls({fqn: (numel[fqn] - count) / numel[fqn] for fqn, count in kept.items()})

    def num_kept(self, fqn: str, numel: int) -> int:
        """Weights kept of a matrix of `numel`: `(1 - sparsity) * numel` to the nearest."""
        return numel - round(self.sparsity.get(fqn, 0.0) * numel)

    def counts(self, numel: Mapping[str, int]) -> dict[str, int]:
        """Weights kept of every matrix in `numel`.

        Raises:
            ValueError: If the spec names a matrix that `numel` does not have.
        """
        unknown = sorted(set(self.sparsity) - set(numel))
        if unknown:
            close = difflib.get_close_matches(unknown[0], numel, n=1, cutoff=0.8)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(
                f"spec names unknown layers: {', '.join(unknown)}{hint}; "
                f"legal names: {', '.join(numel)}"
            )
        return {fqn: self.num_kept(fqn, count) for fqn, count in numel.items()}

    def to_json(self) -> str:
        """JSON text; `from_json` gives back an equal spec."""
        return json.dumps({"sparsity": dict(self.sparsity)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> SubnetSpec:
        """Read `{"sparsity": {fqn: sparsity}}`.

        Raises:
            ValueError: If the text is anything else.
        """
        expected = 'legal: {"sparsity": {"<layer>": <sparsity in [0, 1]>, ...}}'
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"spec is not JSON ({error}); {expected}") from error
        mapping = content.get("sparsity") if isinstance(content, dict) else None
        if not isinstance(mapping, dict) or set(content) != {"sparsity"}:
            raise ValueError(f"spec has no (or not only) a `sparsity` table; {expected}")
        return cls(mapping)


def subnet_generator(seed: int, step: int, index: int) -> torch.Generator:
    """CPU generator of the `index`-th subnet of a step: equal in every process and resumed run."""
    import torch

    digest = hashlib.blake2b(f"{seed} {step} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def require_layer_levels(number: int) -> None:
    """Check that a grid of levels has a middle.

    Raises:
        ValueError: If the number is neither 0 nor odd and at least 3.
    """
    if number and (number < 3 or number % 2 == 0):
        raise ValueError(f"num_layer_levels {number} must be 0 or odd and at least 3")


class SparsitySpace:
    """The subnets that training samples and a search walks through.

    Densities (kept share of the prunable weights) come from a finite grid, so that the masks of an
    earlier density can be used again until the ranking changes. A subnet has one density for all
    matrices together. Where layers differ, it also has a level for each group of matrices: the
    distance of the group's density from the mean, before the total is restored.

    Args:
        shapes: Shape of every prunable matrix, by name (or its number of weights).
        min_density: Density of the smallest subnet, in (0, 1]; ignored for `levels`.
        max_density: Density of the largest subnet, in [`min_density`, 1]; ignored for `levels`.
        distribution: `log_uniform` or `uniform` between the two, or one of `levels`.
        levels: Densities for `levels`, in (0, 1].
        num_densities: Points of the grid for `log_uniform` and `uniform`.
        per_layer: Also sample an independent level per group; the sampled total stays the same.
        spread: Groups differ from the mean density by a factor within [1 / (1 + spread), 1 +
            spread] before the total is restored; at most `MAX_SPREAD`.
        layer_groups: Regular expressions of matrices that share a level (see `group_matrices`).
        num_layer_levels: Number of levels of the grid; odd, so that the mean is one of them. 0
            draws levels from the whole interval.
        floor: Least density of any matrix.
        block: Block shape of the masks.

    Raises:
        ValueError: If an argument is out of its range.

    Deviation: the omni-sparsity abstract does not say how densities are drawn; `log_uniform`
    gives every octave of sizes the same number of training passes.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int] | int],
        *,
        min_density: float = 0.0625,
        max_density: float = 1.0,
        distribution: Distribution = "log_uniform",
        levels: Sequence[float] = (),
        num_densities: int = 64,
        per_layer: bool = False,
        spread: float = 1.0,
        layer_groups: Sequence[str] = (),
        num_layer_levels: int = 0,
        floor: float = 0.0,
        block: tuple[int, int] = (1, 1),
    ) -> None:
        if distribution not in get_args(Distribution):
            legal = ", ".join(get_args(Distribution))
            raise ValueError(f"distribution {distribution!r} is not known; legal: {legal}")
        if distribution == "levels":
            if not levels or not all(0 < level <= 1 for level in levels):
                raise ValueError(f"levels {tuple(levels)} must be densities in (0, 1], one or more")
            grid = [float(level) for level in levels]
        else:
            if not 0 < min_density <= max_density <= 1:
                raise ValueError(
                    f"min_density {min_density} and max_density {max_density} are out of range; "
                    "legal: 0 < min_density <= max_density <= 1"
                )
            if num_densities < 2:
                raise ValueError(f"num_densities {num_densities} must be at least 2")
            grid = _grid(min_density, max_density, num_densities, distribution == "log_uniform")
        if not 0 <= spread <= MAX_SPREAD:
            raise ValueError(f"spread is {spread}; from 0 to {MAX_SPREAD:g}")
        require_layer_levels(num_layer_levels)
        self.shapes = {
            fqn: (shape,) if isinstance(shape, int) else tuple(shape)
            for fqn, shape in shapes.items()
        }
        self.numel = {fqn: math.prod(shape) for fqn, shape in self.shapes.items()}
        self.groups = group_matrices(self.numel, layer_groups)
        self.densities = tuple(sorted(set(grid)))
        self.per_layer = per_layer
        self.reach = math.log1p(spread)
        self.num_layer_levels = num_layer_levels
        self.floor = floor
        self.block = block
        self._choices = tuple(grid)

    def total_kept(self, density: float) -> int:
        """Prunable weights that a density keeps; at least the floors."""
        least = sum(floors_of(self.numel, self.floor, self.block).values())
        return max(least, round(density * sum(self.numel.values())))

    def at(self, density: float) -> SubnetSpec:
        """The subnet with the same density in all matrices."""
        return self.spec(self.total_kept(density))

    def spec(self, total_kept: int, offsets: Mapping[str, float] | None = None) -> SubnetSpec:
        """The subnet of a total (exact; with blocks, to the block) and of an offset per group.

        Args:
            total_kept: Prunable weights to keep.
            offsets: Log of each group's density relative to the mean, before the total is
                restored; 0 where not named.

        Raises:
            ValueError: If the total is out of range or a group is unknown.
        """
        offsets = offsets or {}
        check_names(offsets, self.groups, "offsets")
        factors = {
            fqn: math.exp(offsets.get(group, 0.0))
            for group, names in self.groups.items()
            for fqn in names
        }
        counts = allocate_proportional(self.shapes, total_kept, factors, self.floor, self.block)
        return SubnetSpec.from_counts(counts, self.numel)

    def offsets_of(self, counts: Mapping[str, int]) -> dict[str, float]:
        """The offsets of the space nearest to an allocation; on the grid if there is one."""
        mean = sum(counts.values()) / sum(self.numel.values())
        offsets: dict[str, float] = {}
        for group, names in self.groups.items():
            density = sum(counts[fqn] for fqn in names) / sum(self.numel[fqn] for fqn in names)
            offset = math.log(max(density, 1e-12) / mean)
            offsets[group] = self.on_grid(min(self.reach, max(-self.reach, offset)))
        return offsets

    def on_grid(self, offset: float) -> float:
        """The level nearest to an offset; the offset itself without a grid."""
        if not self.num_layer_levels or not self.reach:
            return offset
        step = 2 * self.reach / (self.num_layer_levels - 1)
        return round(offset / step) * step

    def sample(self, generator: torch.Generator, least: float = 0.0) -> SubnetSpec:
        """Draw a subnet; a function of the generator's state only (see `subnet_generator`).

        Args:
            generator: Its state advances.
            least: Lowest density; a lower one that is drawn is raised to it.
        """
        import torch

        index = int(torch.randint(len(self._choices), (1,), generator=generator))
        total = self.total_kept(max(least, self._choices[index]))
        return self.spec(total, self.sample_offsets(generator) if self.per_layer else None)

    def sample_offsets(self, generator: torch.Generator) -> dict[str, float]:
        """An offset for every group, each drawn uniformly from its range."""
        import torch

        draws = torch.rand(len(self.groups), generator=generator, dtype=torch.float64).tolist()
        levels = self.num_layer_levels
        if levels:  # each level has the same probability, also the outermost ones
            draws = [min(int(draw * levels), levels - 1) / (levels - 1) for draw in draws]
        return {
            group: self.on_grid(self.reach * (2 * draw - 1))
            for group, draw in zip(self.groups, draws, strict=True)
        }


def _grid(low: float, high: float, points: int, logarithmic: bool) -> list[float]:
    """Densities from low to high, both exactly included."""
    steps = [index / (points - 1) for index in range(points)]
    if logarithmic:
        inner = [low * (high / low) ** step for step in steps]
    else:
        inner = [low + (high - low) * step for step in steps]
    return [low, *inner[1:-1], high]
