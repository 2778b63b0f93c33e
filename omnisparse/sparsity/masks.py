"""Masks of exact size, and how a total is allocated to the matrices of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from omnisparse.sparsity import arrays
from omnisparse.sparsity.arrays import Array, Host
from omnisparse.sparsity.budget import allocate_uniform, check_names, floors_of
from omnisparse.sparsity.cuts import Keeper, Promoted, find_cuts, leading_histogram
from omnisparse.sparsity.keys import (
    CHUNK_WEIGHTS,
    Block,
    Keys,
    Norm,
    Sizes,
    check_block,
    score,
)
from omnisparse.sparsity.ranking import rank

Scope = Literal["layer", "global", "lamp"]


def mask_from_count(
    weight: Array, num_kept: int, block: Block = (1, 1), norm: Norm = "l1", name: str = ""
) -> Array:
    """Mask of the `num_kept` most important weights of one matrix.

    Args:
        weight: Weights, floating point, of torch or numpy.
        num_kept: Weights to keep, in [0, number of weights].
        block: Block shape; with blocks the most whole blocks that fit are kept.
        norm: Block score.
        name: Name of the matrix, for messages.

    Returns:
        Bools of the weight's shape, True = kept. Masks of one weight are nested.

    Raises:
        ValueError: If `num_kept` is out of range or the weight cannot be ranked.
    """
    return next(rank(weight, block, norm, name).masks([num_kept]))


def apply_mask(weight: Array, mask: Array) -> Array:
    """Copy of the weight, exactly (positive) zero where the mask is False."""
    return arrays.where(mask, weight, 0)


def masked_tensors(
    state: Mapping[str, Array],
    requests: Sequence[Mapping[str, int]],
    block: Block = (1, 1),
    norm: Norm = "l1",
) -> Iterator[tuple[str, Array, list[Array] | None]]:
    """Walk a state dict and make the masks of one or many subnets, one tensor at a time.

    Args:
        state: Dense tensors; read only.
        requests: For each subnet, kept weights of every matrix that is pruned.
        block: Block shape.
        norm: Block score.

    Yields:
        Name, dense tensor, and the masks in the order of `requests` (views of nothing else), or
        None for a tensor that no request prunes.

    Raises:
        ValueError: If a request names an unknown tensor, or a weight cannot be ranked.
    """
    for request in requests:
        check_names(request, state, "request")
    for fqn, tensor in state.items():
        numel = math.prod(tensor.shape)
        counts = [request.get(fqn, numel) for request in requests]
        if all(count == numel for count in counts):
            yield fqn, tensor, None
        else:
            yield fqn, tensor, list(rank(tensor, block, norm, fqn).masks(counts))


def allocate(
    weights: Mapping[str, Array],
    total_kept: int,
    scope: Scope = "layer",
    floor: float = 0.0,
    block: Block = (1, 1),
    norm: Norm = "l1",
) -> dict[str, int]:
    """Number of weights each matrix keeps, for a total over all of them: see `Allocator`."""
    return Allocator(weights, scope, floor, block, norm).counts(total_kept)


class Allocator:
    """Spreads totals over the matrices of a model; what no total changes is worked out once.

    `layer` gives every matrix one density; `global` ranks all weights together by magnitude;
    `lamp` by magnitude relative to the energy of the weights of the same matrix that are at least
    as large. Counts never shrink when the total grows, so the models of two totals are nested.

    Args:
        weights: Matrices by name, asked for one at a time.
        scope: How matrices compete.
        floor: Density that every matrix keeps at least; one weight (or block) in any case.
        block: Block shape.
        norm: Block score.
        names: The prunable ones among `weights`; all by default.

    Raises:
        ValueError: If an argument is illegal, or a weight cannot be ranked.

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
        self._floor = floor
        prunable = list(weights if names is None else names)
        self._shapes = {fqn: tuple(weights[fqn].shape) for fqn in prunable}
        numel = {fqn: math.prod(shape) for fqn, shape in self._shapes.items()}
        floors = floors_of(numel, floor, block)
        self._keys: dict[str, Keys] = {}
        if scope == "layer":
            return
        # One dtype for all, so that keys of different matrices compare.
        wide = any(arrays.dtype_name(weights[fqn]) == "float64" for fqn in prunable)
        common = "float64" if wide else "float32"
        for fqn in prunable:
            keys = score(weights[fqn], block, norm, fqn, common)
            if scope == "lamp":
                keys = _lamp_keys(keys, numel[fqn])
            # One ranking over all matrices, in which the floor of each goes first.
            self._keys[fqn] = Promoted(keys, find_cuts([keys], [floors[fqn]])[0])
        self._histogram = leading_histogram(list(self._keys.values()))

    def counts(self, total_kept: int) -> dict[str, int]:
        """Number of weights each matrix keeps.

        Args:
            total_kept: Weights to keep in all.

        Returns:
            Counts that add up to exactly `total_kept`; with blocks, whole blocks that add up to
            the most that does not exceed it.

        Raises:
            ValueError: If the total cannot be met with this floor.
        """
        uniform = allocate_uniform(self._shapes, total_kept, self._floor, self._block)
        if not self._keys:
            return uniform
        keys = list(self._keys.values())
        keep = Keeper(find_cuts(keys, [total_kept], self._histogram)[0])
        return {fqn: _num_kept(group, keep) for fqn, group in self._keys.items()}


def _num_kept(keys: Keys, keep: Keeper) -> int:
    """Weights of the next matrix in a prefix of the joint ranking."""
    total = 0
    for part, sizes in keys:
        kept = keep(part)
        if isinstance(sizes, int):
            total += int(kept.sum()) * sizes
        else:
            total += int(sizes[arrays.host(kept)].sum())
    return total


def _lamp_keys(keys: Keys, num_weights: int) -> Keys:
    """LAMP scores of one matrix as integer keys (bits of float32), from the largest on.

    Only the counts matter here and scores fall with magnitude, so they stay in sorted order.
    """
    if isinstance(keys.sizes, int):
        # Negative, so that sorting in place puts the largest first; then the scores take their
        # place, chunk by chunk.
        ordered = np.empty(num_weights // keys.sizes, f"int{keys.bits}")
        at = 0
        for part, _ in keys:
            np.negative(arrays.host(part), out=ordered[at : at + len(part)])
            at += len(part)
        ordered.sort()
        sizes: Sizes = keys.sizes
    else:
        whole = arrays.host(arrays.joined(part for part, _ in keys))
        order = arrays.descending_order(whole)
        ordered, sizes = -whole[order], keys.sizes[order]
    return Keys(_lamp_scores(ordered), sizes)


def _lamp_scores(negative_keys: Host) -> Host:
    """Scores of a matrix whose magnitudes fall; keys of 32 bits are overwritten."""
    is_wide = negative_keys.dtype == np.int64
    floats = np.float64 if is_wide else np.float32
    scores = np.empty(negative_keys.size, np.int32) if is_wide else negative_keys
    largest = energy = 0.0
    for start in range(0, negative_keys.size, CHUNK_WEIGHTS):
        here = slice(start, start + CHUNK_WEIGHTS)
        values = (-negative_keys[here]).view(floats).astype(np.float64)
        largest = largest if start else float(values[0])
        if largest:
            # Relative to the largest, so that squares neither overflow nor vanish together.
            values = np.square(values / largest)
            # One order of additions, whatever the chunk or device: the same counts everywhere.
            sums = values.copy()
            sums[0] += energy
            sums = sums.cumsum()
            energy = float(sums[-1])
            values /= sums
        scores[here] = values.astype(np.float32).view(np.int32)
    return scores
