"""Masks of exact size."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence

from omnisparse.sparsity import arrays
from omnisparse.sparsity.arrays import Array
from omnisparse.sparsity.budget import check_names
from omnisparse.sparsity.keys import Block, Norm, block_of
from omnisparse.sparsity.ranking import rank


def mask_from_count(
    weight: Array, num_kept: int, block: Block = (1, 1), norm: Norm = "l1", name: str = ""
) -> Array:
    """Mask of the `num_kept` most important weights of one matrix.

    Args:
        weight: Weights, floating point, of torch or numpy.
        num_kept: Weights to keep, in [0, number of weights].
        block: Block shape; with blocks, as many whole blocks as fit are kept.
        norm: Block score.
        name: Name of the matrix, for messages.

    Returns:
        Bools of the weight's shape, True = kept. Masks of the same weight are nested.

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
    single: Container[str] = (),
) -> Iterator[tuple[str, Array, list[Array] | None]]:
    """Iterate over a state dict and compute the masks of one or many subnets.

    Args:
        state: Dense tensors; read only.
        requests: For each subnet, kept weights of every matrix that is pruned.
        block: Block shape.
        norm: Block score.
        single: Names of the matrices that are pruned weight by weight, whatever the block.

    Yields:
        For one tensor at a time: name, dense tensor, and the masks in the order of `requests`
        (never views of other arrays), or None for a tensor that no request prunes.

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
            shape = block_of(fqn, block, single)
            yield fqn, tensor, list(rank(tensor, shape, norm, fqn).masks(counts))
