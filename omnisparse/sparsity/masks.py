"""Masks of exact size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from omnisparse.sparsity.budget import check_names
from omnisparse.sparsity.ranking import Block, Norm, rank


def mask_from_count(
    weight: Tensor, num_kept: int, block: Block = (1, 1), norm: Norm = "l1", name: str = ""
) -> Tensor:
    """Mask of the `num_kept` most important weights of one matrix.

    Args:
        weight: Weights, floating point.
        num_kept: Weights to keep, in [0, `weight.numel()`].
        block: Block shape; with blocks the most whole blocks that fit are kept.
        norm: Block score.
        name: Name of the matrix, for messages.

    Returns:
        Bool tensor of the weight's shape, True = kept. Masks of one weight are nested.

    Raises:
        ValueError: If `num_kept` is out of range or the weight cannot be ranked.
    """
    return next(rank(weight, block, norm, name).masks([num_kept]))


def apply_mask(weight: Tensor, mask: Tensor) -> Tensor:
    """Copy of the weight, exactly (positive) zero where the mask is False."""
    return torch.where(mask, weight.detach(), torch.zeros((), dtype=weight.dtype).to(weight))


def masked_tensors(
    state: Mapping[str, Tensor],
    requests: Sequence[Mapping[str, int]],
    block: Block = (1, 1),
    norm: Norm = "l1",
) -> Iterator[tuple[str, Tensor, list[Tensor] | None]]:
    """Walk a state dict and make the masks of one or many subnets, one tensor at a time.

    Memory beyond the state itself is that of its largest matrix, so a memory-mapped checkpoint of
    any number of sizes can be written without a copy of the model.

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
        counts = [request.get(fqn, tensor.numel()) for request in requests]
        if all(count == tensor.numel() for count in counts):
            yield fqn, tensor, None
        else:
            yield fqn, tensor, list(rank(tensor, block, norm, fqn).masks(counts))
