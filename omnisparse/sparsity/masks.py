"""Masks of exact size, and how a total is allocated to the matrices of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from omnisparse.sparsity.budget import allocate_uniform, check_names, floors_of
from omnisparse.sparsity.ranking import (
    Block,
    Cut,
    Norm,
    block_sizes,
    check_block,
    descending_order,
    find_cuts,
    rank,
    score_keys,
)

Scope = Literal["layer", "global", "lamp"]

_FLOATS = {torch.int32: np.float32, torch.int64: np.float64}


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


def allocate(
    weights: Mapping[str, Tensor],
    total_kept: int,
    scope: Scope = "layer",
    floor: float = 0.0,
    block: Block = (1, 1),
    norm: Norm = "l1",
) -> dict[str, int]:
    """Number of weights each matrix keeps, for a total over all of them.

    `layer` gives every matrix one density; `global` ranks all weights together by magnitude;
    `lamp` by magnitude relative to the energy of the weights of the same matrix that are at least
    as large. Counts never shrink when the total grows, so the models of two totals are nested.

    Args:
        weights: Prunable matrices by name.
        total_kept: Weights to keep in all.
        scope: How matrices compete.
        floor: Density that every matrix keeps at least; one weight (or block) in any case.
        block: Block shape.
        norm: Block score.

    Returns:
        Counts that add up to exactly `total_kept`; with blocks, whole blocks that add up to the
        most that does not exceed it.

    Raises:
        ValueError: If the total cannot be met with this floor, or a weight cannot be ranked.

    Source: Lee et al. 2021 (arXiv:2010.07611), score u^2 / sum of v^2 over |v| >= |u|, for `lamp`.
    Deviation: with blocks, `lamp` uses block scores for magnitudes; scores compare in float32.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"scope {scope!r} is not known; legal: {', '.join(get_args(Scope))}")
    check_block(block)
    shapes = {fqn: tuple(weight.shape) for fqn, weight in weights.items()}
    uniform = allocate_uniform(shapes, total_kept, floor, block)
    if scope == "layer":
        return uniform
    floors = floors_of({fqn: weight.numel() for fqn, weight in weights.items()}, floor, block)
    sizes = [block_sizes(weight.shape, block, weight.device) for weight in weights.values()]
    # One dtype for all, so that keys of different matrices compare.
    wide = any(weight.dtype == torch.float64 for weight in weights.values())
    common = torch.float64 if wide else torch.float32
    keys = [score_keys(w.detach().to(common), block, norm, fqn) for fqn, w in weights.items()]
    if scope == "lamp":
        ranked = [_lamp_keys(scores, size) for scores, size in zip(keys, sizes, strict=True)]
        keys, sizes = [scores for scores, _ in ranked], [size for _, size in ranked]
    counts = _allocate_by_score(keys, sizes, list(floors.values()), total_kept)
    return dict(zip(weights, counts, strict=True))


def _allocate_by_score(
    keys: Sequence[Tensor], sizes: Sequence[int | Tensor], floors: Sequence[int], total: int
) -> list[int]:
    """Counts from one ranking over all matrices in which every matrix's floor goes first."""
    for scores, size, floor in zip(keys, sizes, floors, strict=True):
        cut = find_cuts([scores], [size], [floor])[0]
        ties = (scores == cut.threshold).nonzero()[: cut.num_ties, 0]
        scores[scores > cut.threshold] = torch.iinfo(scores.dtype).max
        scores[ties] = torch.iinfo(scores.dtype).max
    cut = find_cuts(keys, sizes, [total])[0]
    return _counts_at(keys, sizes, cut)


def _counts_at(keys: Sequence[Tensor], sizes: Sequence[int | Tensor], cut: Cut) -> list[int]:
    """Weights of each matrix in a prefix of the joint ranking."""
    counts: list[int] = []
    ties = cut.num_ties
    for scores, size in zip(keys, sizes, strict=True):
        above = scores > cut.threshold
        equal = (scores == cut.threshold).nonzero()[:ties, 0]
        ties -= equal.numel()
        if isinstance(size, int):
            counts.append((int(above.sum()) + equal.numel()) * size)
        else:
            counts.append(int(size[above].sum() + size[equal].sum()))
    return counts


def _lamp_keys(keys: Tensor, size: int | Tensor) -> tuple[Tensor, int | Tensor]:
    """LAMP scores of one matrix as integer keys (bits of float32), from the largest on.

    Only the counts matter here and scores fall with magnitude, so they stay in sorted order.
    """
    if isinstance(size, int):
        ordered = np.sort(keys.cpu().numpy())[::-1]
    else:
        order = descending_order(keys.cpu())
        ordered = keys.cpu()[order].numpy()
        size = size[order.to(size.device)]
    magnitudes = ordered.view(_FLOATS[keys.dtype]).astype(np.float64)
    if magnitudes.size and magnitudes[0]:
        # Relative to the largest, so that squares neither overflow nor vanish together.
        squares = np.square(magnitudes / magnitudes[0])
        # One order of additions, whatever the device: the same counts everywhere.
        squares /= np.cumsum(squares)
        magnitudes = squares
    scores = torch.from_numpy(magnitudes.astype(np.float32)).to(keys.device)
    return scores.view(torch.int32), size
