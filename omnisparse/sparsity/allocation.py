"""How a total of kept weights is shared by the matrices of a model.

The weights are ranked once, whatever the number of totals that are then asked for: a search for a
size in bytes asks for dozens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omnisparse.sparsity.budget import allocate_uniform, check_total, floors_of, is_tiled
from omnisparse.sparsity.ranking import Block, Norm, block_sizes, check_block, score_keys

Scope = Literal["layer", "global", "lamp"]
Array = npt.NDArray[Any]

_FLOATS = {np.dtype(np.int32): np.float32, np.dtype(np.int64): np.float64}
_DIGIT_BITS = 16
_CHUNK = 1 << 20


def allocate(
    weights: Mapping[str, Tensor],
    total_kept: int,
    scope: Scope = "layer",
    floor: float = 0.0,
    block: Block = (1, 1),
    norm: Norm = "l1",
) -> dict[str, int]:
    """Number of weights each matrix keeps, for one total: see :class:`Allocator`."""
    return Allocator(weights, scope, floor, block, norm).counts(total_kept)


class Allocator:
    """Shares any number of totals among the matrices, from one ranking.

    `layer` gives every matrix one density; `global` ranks all weights together by magnitude;
    `lamp` by magnitude relative to the energy of the weights of the same matrix that are at least
    as large. Counts never shrink when the total grows, so the models of two totals are nested.

    Args:
        weights: Prunable matrices by name. `layer` reads only those that blocks do not tile.
        scope: How matrices compete.
        floor: Density that every matrix keeps at least; one weight (or block) in any case.
        block: Block shape.
        norm: Block score.

    Raises:
        ValueError: If an argument is illegal or a weight cannot be ranked.

    Source: Lee et al. 2021 (arXiv:2010.07611), score u^2 / sum of v^2 over |v| >= |u|, for `lamp`.
    Deviation: with blocks, `lamp` uses block scores for magnitudes; scores compare in float32.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        scope: Scope = "layer",
        floor: float = 0.0,
        block: Block = (1, 1),
        norm: Norm = "l1",
    ) -> None:
        if scope not in get_args(Scope):
            raise ValueError(f"scope {scope!r} is not known; legal: {', '.join(get_args(Scope))}")
        self._block = check_block(block)
        self._norm: Norm = norm
        self._floor = floor
        self._shapes = {fqn: tuple(weight.shape) for fqn, weight in weights.items()}
        self._numel = {fqn: weight.numel() for fqn, weight in weights.items()}
        self._floors = floors_of(self._numel, floor, block)
        self._weights = weights
        self._running: dict[str, Array] = {}
        self._joint = None if scope == "layer" else self._rank_together(scope)

    def counts(self, total: int) -> dict[str, int]:
        """Kept weights of every matrix.

        Returns:
            Counts that add up to exactly `total`; with blocks, whole blocks: the most that the
            masks can keep of it.

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
        """Totals whose counts are known without another look at the weights, rising."""
        return [] if self._joint is None else self._joint.milestones

    def _whole_blocks(self, fqn: str, count: int) -> int:
        """What a mask keeps of `count`: the whole blocks that fit, in order of importance."""
        numel, size = self._numel[fqn], self._block[0] * self._block[1]
        if size == 1 or count == numel:
            return count
        if is_tiled(self._shapes[fqn], self._block):
            return count // size * size
        if fqn not in self._running:
            keys, sizes = self._keys_and_sizes(fqn, self._weights[fqn].detach())
            order = np.argsort(-keys, kind="stable")
            self._running[fqn] = np.cumsum(np.broadcast_to(sizes, keys.shape)[order])
        fitting = int(np.searchsorted(self._running[fqn], count, side="right"))
        return int(self._running[fqn][fitting - 1]) if fitting else 0

    def _keys_and_sizes(self, fqn: str, weight: Tensor) -> tuple[Array, int | Array]:
        """Keys of a matrix's blocks, and how many weights each block has."""
        keys: Array = score_keys(weight, self._block, self._norm, fqn).cpu().numpy()
        sizes = block_sizes(weight.shape, self._block, torch.device("cpu"))
        return keys, sizes if isinstance(sizes, int) else sizes.numpy()

    def _rank_together(self, scope: Scope) -> _JointRanking:
        # One dtype for all, so that keys of different matrices compare.
        wide = any(weight.dtype == torch.float64 for weight in self._weights.values())
        common = torch.float64 if wide else torch.float32
        ranked = []
        for fqn, weight in self._weights.items():
            keys, sizes = self._keys_and_sizes(fqn, weight.detach().to(common))
            ranked.append(_lamp_keys(keys, sizes) if scope == "lamp" else (keys, sizes))
        return _JointRanking(
            [keys for keys, _ in ranked],
            [sizes for _, sizes in ranked],
            list(self._floors.values()),
        )


class _JointRanking:
    """One ranking over all matrices in which every matrix's floor goes first.

    A histogram per matrix of the leading 16 bits of the keys tells the counts wherever a prefix
    ends between two bins; for any other total only the blocks of one bin are put in order.

    Args:
        keys: Per matrix, flat non-negative integer keys of one dtype; they are changed.
        sizes: Weights per block, per matrix: one number, or one array like the keys.
        floors: Weights of every matrix that come before all others.
    """

    def __init__(
        self, keys: Sequence[Array], sizes: Sequence[int | Array], floors: Sequence[int]
    ) -> None:
        for key, size, floor in zip(keys, sizes, floors, strict=True):
            _put_first(key, size, floor)
        self._keys, self._sizes = keys, sizes
        self._shift = 8 * keys[0].dtype.itemsize - _DIGIT_BITS
        # Weights in a bin and all above it: [matrices, bins + 1].
        self._inclusive = np.stack(
            [_from_bin(key, size, self._shift) for key, size in zip(keys, sizes, strict=True)]
        )
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

    def _sorted_members(self, bin_: int) -> tuple[Array, Array, Array]:
        """Matrix, weights and running weights of a bin's blocks, equals by matrix and index."""
        keys, owners, sizes = [], [], []
        for owner, (key, size) in enumerate(zip(self._keys, self._sizes, strict=True)):
            places = np.flatnonzero(key >> self._shift == bin_)
            keys.append(key[places])
            owners.append(np.full(places.size, owner, np.int32))
            sizes.append(np.full(places.size, size) if isinstance(size, int) else size[places])
        order = np.argsort(-np.concatenate(keys), kind="stable")
        weights = np.concatenate(sizes)[order]
        return np.concatenate(owners)[order], weights, np.cumsum(weights)


def _put_first(keys: Array, size: int | Array, floor: int) -> None:
    """Give the most important blocks, as many as `floor` weights hold, the highest key."""
    highest = np.iinfo(keys.dtype).max
    if not isinstance(size, int):
        order = np.argsort(-keys, kind="stable")
        fit = int(np.searchsorted(np.cumsum(size[order]), floor, side="right"))
        keys[order[:fit]] = highest
        return
    first = keys.size - floor // size
    threshold = keys.max() if first == keys.size - 1 else np.partition(keys, first)[first]
    above = np.flatnonzero(keys > threshold)
    ties = np.flatnonzero(keys == threshold)[: floor // size - above.size]
    keys[above] = keys[ties] = highest


def _from_bin(keys: Array, size: int | Array, shift: int) -> Array:
    """Weights in each bin of the leading bits and all above it: int64 `[bins + 1]`."""
    bins = 2 ** (_DIGIT_BITS - 1)  # keys are not negative
    weights = np.zeros(bins + 1, np.int64)
    for start in range(0, keys.size, _CHUNK):
        digits = keys[start : start + _CHUNK] >> shift
        share = None if isinstance(size, int) else size[start : start + _CHUNK]
        weights[:bins] += np.bincount(digits, share, minlength=bins).astype(np.int64)
    if isinstance(size, int):
        weights *= size
    return np.cumsum(weights[::-1])[::-1]


def _lamp_keys(keys: Array, size: int | Array) -> tuple[Array, int | Array]:
    """LAMP scores of one matrix as integer keys (bits of float32), from the largest on.

    Only the counts matter here and scores fall with magnitude, so they stay in sorted order.
    """
    if isinstance(size, int):
        ordered = np.sort(keys)[::-1]
    else:
        order = np.argsort(-keys, kind="stable")
        ordered, size = keys[order], size[order]
    magnitudes = ordered.view(_FLOATS[keys.dtype]).astype(np.float64)
    if magnitudes.size and magnitudes[0]:
        # Relative to the largest, so that squares neither overflow nor vanish together.
        squares = np.square(magnitudes / magnitudes[0])
        # One order of additions, whatever the device: the same counts everywhere.
        squares /= np.cumsum(squares)
        magnitudes = squares
    return magnitudes.astype(np.float32).view(np.int32), size
