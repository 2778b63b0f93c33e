"""How a total number of kept weights is divided among the matrices of a model.

The weights are ranked once for any number of totals: a search for a size in bytes tries dozens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from omnisparse.sparsity import arrays
from omnisparse.sparsity.arrays import Array, Host
from omnisparse.sparsity.budget import allocate_uniform, check_total, floors_of, is_tiled
from omnisparse.sparsity.cuts import Promoted, find_cuts, leading_histogram, members_of
from omnisparse.sparsity.keys import (
    CHUNK_WEIGHTS,
    Block,
    Keys,
    Norm,
    Sizes,
    check_block,
    not_finite,
    score,
)

Scope = Literal["layer", "global", "lamp"]


def allocate(
    weights: Mapping[str, Array],
    total_kept: int,
    scope: Scope = "layer",
    floor: float = 0.0,
    block: Block = (1, 1),
    norm: Norm = "l1",
) -> dict[str, int]:
    """Number of weights each matrix keeps, for one total: see :class:`Allocator`."""
    return Allocator(weights, scope, floor, block, norm).counts(total_kept)


class Allocator:
    """Divides any number of totals among the matrices, with one ranking.

    `layer` gives every matrix the same density; `global` ranks all weights together by magnitude;
    `lamp` by magnitude relative to the energy of the weights of the same matrix that are at least
    as large. Counts never shrink when the total grows, so the models of two totals are nested.

    Args:
        weights: Matrices by name, of torch or numpy, read one at a time. `layer` reads only the
            matrices that blocks do not tile.
        scope: How matrices compete.
        floor: Least density of every matrix; at least one weight (or block) is always kept.
        block: Block shape.
        norm: Block score.
        names: The prunable ones among `weights`; all by default.

    Raises:
        ValueError: If an argument is illegal or a weight cannot be ranked.

    Source: Lee et al. 2021 (arXiv:2010.07611), score u^2 / sum of v^2 over |v| >= |u|, for `lamp`.
    Deviation: with blocks, `lamp` uses block scores for magnitudes; scores compare in float32.
    """

    def __init__(
        self,
        weights: Mapping[str, Array],
        scope: Scope = "layer",
        floor: float = 0.0,
        block: Block = (1, 1),
        norm: Norm = "l1",
        names: Iterable[str] | None = None,
    ) -> None:
        if scope not in get_args(Scope):
            raise ValueError(f"scope {scope!r} is not known; legal: {', '.join(get_args(Scope))}")
        self._block = check_block(block)
        self._norm: Norm = norm
        self._floor = floor
        prunable = weights if names is None else names
        self._shapes = {fqn: tuple(weights[fqn].shape) for fqn in prunable}
        self._numel = {fqn: math.prod(shape) for fqn, shape in self._shapes.items()}
        self._floors = floors_of(self._numel, floor, block)
        self._weights = weights
        self._running: dict[str, Host] = {}
        self._joint = None if scope == "layer" else _JointRanking(self._competitors(scope))

    def counts(self, total: int) -> dict[str, int]:
        """Kept weights of every matrix.

        Returns:
            Counts that add up to exactly `total`. With blocks, counts are whole blocks and add up
            to the most that does not exceed `total`.

        Raises:
            ValueError: If the total cannot be met with this floor.
        """
        check_total(total, self._floors, self._numel, self._floor, self._block)
        if self._joint is not None:
            return dict(zip(self._shapes, self._joint.counts(total), strict=True))
        counts = allocate_uniform(self._shapes, total, self._floor, self._block)
        return {fqn: self._whole_blocks(fqn, count) for fqn, count in counts.items()}

    @property
    def milestones(self) -> list[int]:
        """Totals, in rising order, whose counts are known without reading the weights again."""
        return [] if self._joint is None else self._joint.milestones

    def _whole_blocks(self, fqn: str, count: int) -> int:
        """Weights that a mask of `count` keeps: the most important whole blocks that fit."""
        numel, size = self._numel[fqn], self._block[0] * self._block[1]
        if size == 1 or count == numel:
            return count
        if is_tiled(self._shapes[fqn], self._block):
            return count // size * size
        if fqn not in self._running:
            keys = score(self._weights[fqn], self._block, self._norm, fqn)
            self._running[fqn] = _in_order(*_whole(keys))[1].cumsum()
        fitting = int(np.searchsorted(self._running[fqn], count, side="right"))
        return int(self._running[fqn][fitting - 1]) if fitting else 0

    def _competitors(self, scope: Scope) -> Iterator[tuple[Keys, int]]:
        """Keys and floor of every matrix."""
        # One dtype for all, so that keys of different matrices compare.
        dtypes = {arrays.dtype_name(self._weights[fqn]) for fqn in self._shapes}
        common = "float64" if "float64" in dtypes else "float32"
        for fqn, floor in self._floors.items():
            keys = score(self._weights[fqn], self._block, self._norm, fqn, common)
            yield _lamp_keys(keys, self._numel[fqn], fqn) if scope == "lamp" else keys, floor


class _JointRanking:
    """One ranking over all matrices, in which the floor of every matrix comes first.

    A histogram per matrix of the leading 16 bits of the keys gives the counts where a prefix ends
    between two bins. For any other total, only the blocks of one bin are sorted.

    Args:
        competitors: For every matrix its keys, all of one dtype, and its floor: the number of
            weights that come before all others. Each matrix is finished before the next is read.

    Raises:
        ValueError: If a weight is not finite.
    """

    def __init__(self, competitors: Iterable[tuple[Keys, int]]) -> None:
        self._keys: list[Keys] = []
        inclusive: list[Host] = []
        for keys, floor in competitors:
            self._keys.append(Promoted(keys, find_cuts([keys], [floor])[0]))
            histogram = leading_histogram(self._keys[-1:])
            inclusive.append(np.append(histogram[::-1].cumsum()[::-1], 0))
        # Weights in a bin and all above it: [matrices, bins + 1].
        self._inclusive = np.stack(inclusive)
        self._totals = self._inclusive.sum(axis=0)
        self._bin = -1

    @property
    def milestones(self) -> list[int]:
        return [int(total) for total in np.unique(self._totals)]

    def counts(self, total: int) -> list[int]:
        """Weights of each matrix in the longest prefix that holds at most `total`."""
        bins = self._totals.size - 1
        first = bins + 1 - int(np.searchsorted(self._totals[::-1], total, side="right"))
        whole = self._inclusive[:, first]
        if first == 0 or self._totals[first] == total:
            return [int(count) for count in whole]
        if self._bin != first - 1:
            self._bin, self._members = first - 1, self._sorted_members(first - 1)
        owners, sizes, running = self._members
        fit = int(np.searchsorted(running, total - self._totals[first], side="right"))
        more = np.bincount(owners[:fit], sizes[:fit], minlength=len(whole))
        return [int(count) for count in whole + more.astype(np.int64)]

    def _sorted_members(self, bin_: int) -> tuple[Host, Host, Host]:
        """Matrix, weights and running weights of a bin's blocks; ties by matrix and index."""
        found = [_whole(members_of(group, bin_)) for group in self._keys]
        order, sizes = _in_order(
            np.concatenate([keys for keys, _ in found]), np.concatenate([size for _, size in found])
        )
        owners = np.repeat(np.arange(len(found), dtype=np.int32), [keys.size for keys, _ in found])
        return owners[order], sizes, sizes.cumsum()


def _whole(keys: Keys) -> tuple[Host, npt.NDArray[np.int64]]:
    """Keys on the host, and weights of each block."""
    parts = [(arrays.host(part), sizes) for part, sizes in keys]
    each = [np.broadcast_to(sizes, part.shape) for part, sizes in parts]
    return np.concatenate([part for part, _ in parts]), np.concatenate(each)


def _in_order(keys: Host, sizes: Host) -> tuple[Host, Host]:
    """Indices from the largest key to the smallest, ties by index, and sizes in this order."""
    order: Host = arrays.descending_order(keys)
    return order, sizes[order]


def _lamp_keys(keys: Keys, num_weights: int, name: str) -> Keys:
    """LAMP scores of one matrix as integer keys (bits of float32), the largest first.

    Only the counts matter here, and scores fall with magnitude, so they stay in sorted order.

    Raises:
        ValueError: If a weight is not finite.
    """
    sizes: Sizes
    if isinstance(keys.sizes, int):
        # Negative, so that sorting in place puts the largest first; then the scores replace the
        # keys, chunk by chunk.
        sizes = keys.sizes
        ordered = np.empty(num_weights // sizes, f"int{keys.bits}")
        at = 0
        for part, _ in keys:
            np.negative(arrays.host(part), out=ordered[at : at + len(part)])
            at += len(part)
        ordered.sort()
    else:
        whole, each = _whole(keys)
        order, sizes = _in_order(whole, each)
        ordered = -whole[order]
    return Keys(_lamp_scores(ordered, name), sizes)


def _lamp_scores(negative_keys: Host, name: str) -> Host:
    """Scores of a matrix whose magnitudes are in falling order; 32-bit keys are overwritten."""
    is_wide = negative_keys.dtype == np.int64
    floats = np.float64 if is_wide else np.float32
    scores = np.empty(negative_keys.size, np.int32) if is_wide else negative_keys
    largest = energy = 0.0
    for start in range(0, negative_keys.size, CHUNK_WEIGHTS):
        here = slice(start, start + CHUNK_WEIGHTS)
        values = (-negative_keys[here]).view(floats).astype(np.float64)
        largest = largest if start else float(values[0])
        if not math.isfinite(largest):
            raise not_finite(name)
        if largest:
            # Relative to the largest, so that squares do not overflow or all underflow.
            values = np.square(values / largest)
            # The order of additions is fixed for all chunks and devices: equal counts everywhere.
            sums = values.copy()
            sums[0] += energy
            sums = sums.cumsum()
            energy = float(sums[-1])
            values /= sums
        scores[here] = values.astype(np.float32).view(np.int32)
    return scores
