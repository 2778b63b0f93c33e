"""Masked copies of weights, made for one forward pass and shared with its backward pass.

A mask is never stored. It is one comparison of the places in the ranking with the number of kept
blocks, made where it is needed. The copy has the dtype of the pass, so that masking and casting are
one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omnisparse.sparsity.keys import Block, expand_blocks

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their size in bytes."""

_CHUNK_WEIGHTS = 1 << 16
"""Weights whose masks are in memory at a time on a CPU: those that its cache holds."""


class Thinning(NamedTuple):
    """The weights of one matrix that a subnet keeps."""

    positions: Tensor
    """``[num_blocks]`` int32: place of every block in the ranking, 0 = most important."""

    limit: int
    """Number of kept blocks."""

    block: Block
    """Block shape."""

    def clear(self, weight: Tensor) -> Tensor:
        """Set to (positive) zero what is hidden, NaN too, in place; returns ``weight``.

        On the bits, because a CPU does that many weights at a time; a choice by bools is one
        branch a weight, five times slower where the mask is as random as a ranking.
        """
        if not weight.is_contiguous():  # such as the channels_last weights of a convolution
            return weight.copy_(self.clear(weight.contiguous()))
        bits = weight.view(_BITS[weight.element_size()])
        if self.block != (1, 1):
            kept = _kept_bits(self.positions, self.limit).to(bits.dtype)
            bits.bitwise_and_(expand_blocks(kept, weight.shape, self.block))
            return weight
        flat = bits.view(-1)
        stride = _CHUNK_WEIGHTS if weight.device.type == "cpu" else max(1, flat.numel())
        for start in range(0, flat.numel(), stride):
            kept = _kept_bits(self.positions[start : start + stride], self.limit)
            flat[start : start + stride].bitwise_and_(kept.to(bits.dtype))
        return weight


def _kept_bits(positions: Tensor, limit: int) -> Tensor:
    """int32 of each block: all bits where its position is below the limit, none elsewhere."""
    return (positions - limit).bitwise_right_shift_(31)


class _MaskedCopy(torch.autograd.Function):
    """See :func:`masked_copies`."""

    @staticmethod
    def forward(
        ctx: Any,
        thinnings: Sequence[Thinning | None],
        dtype: torch.dtype,
        straight_through: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.thinnings = [None if straight_through else thinning for thinning in thinnings]
        ctx.dtypes = [weight.dtype for weight in weights]
        copies = _empty_like(weights, dtype)
        for weight, copy, thinning in zip(weights, copies, thinnings, strict=True):
            copy.copy_(weight)
            if thinning is not None:
                thinning.clear(copy)
        return tuple(copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        passed: list[Tensor | None] = []
        for grad, thinning, dtype in zip(grads, ctx.thinnings, ctx.dtypes, strict=True):
            if grad is not None and thinning is not None:
                # A copy: the gradient may be someone else's, too.
                grad = grad.to(dtype, copy=True, memory_format=torch.contiguous_format)
                grad = thinning.clear(grad)
            passed.append(None if grad is None else grad.to(dtype))
        return (None, None, None, *passed)


def masked_copies(
    weights: Sequence[Tensor],
    thinnings: Sequence[Thinning | None],
    *,
    dtype: torch.dtype,
    straight_through: bool = False,
) -> list[Tensor]:
    """Copies of some tensors with a subnet's masks applied; the gradient reaches the tensors.

    Args:
        weights: Tensors of one module. On CUDA the copies are one chunk of memory, matrices before
            vectors, as cuDNN needs it for an LSTM; elsewhere each copy has its own memory.
        thinnings: For each tensor its thinning, None for no mask.
        dtype: Dtype of the copies.
        straight_through: Pass the gradient of a masked weight as if it had not been masked.

    Returns:
        One copy per tensor, exactly 0 where masked, also if the weight is NaN there.
    """
    return list(
        _MaskedCopy.apply(  # type: ignore[no-untyped-call]
            thinnings, dtype, straight_through, *weights
        )
    )


def by_module(model: nn.Module, prunable: Iterable[str]) -> list[list[str]]:
    """Names of matrices that are copied together: one alone, all parameters of a recurrent layer.

    Args:
        model: The net.
        prunable: Names of the matrices that masks may prune.
    """
    groups: dict[str, list[str]] = {}
    for fqn in prunable:
        owner, _, _ = fqn.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, nn.RNNBase):
            names = [name for name, _ in module.named_parameters()]
            groups[owner] = [f"{owner}.{name}" if owner else name for name in names]
        else:
            groups[fqn] = [fqn]
    return list(groups.values())


def masked_parameters(
    model: nn.Module,
    groups: Iterable[Sequence[str]],
    thinned: Mapping[str, Thinning],
    views: Mapping[str, Tensor],
    *,
    straight_through: bool = False,
) -> dict[str, Tensor]:
    """Masked copies of the matrices that a subnet prunes, module by module, for one pass.

    Args:
        model: The net.
        groups: Names that are copied together, of :func:`by_module`; without a thinning among them
            they are not copied.
        thinned: Thinnings by name.
        views: What to copy in place of the parameters of these names.
        straight_through: Pass the gradient of a masked weight as if it had not been masked.

    Returns:
        Copies by name, in autocast's dtype where it is on.
    """
    masked: dict[str, Tensor] = {}
    for names in groups:
        if not any(fqn in thinned for fqn in names):
            continue
        weights = [views[fqn] if fqn in views else model.get_parameter(fqn) for fqn in names]
        device, dtype = weights[0].device.type, weights[0].dtype
        if device in ("cuda", "cpu") and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        thinnings = [thinned.get(fqn) for fqn in names]
        copies = masked_copies(weights, thinnings, dtype=dtype, straight_through=straight_through)
        masked.update(zip(names, copies, strict=True))
    return masked


class _Damped(torch.autograd.Function):
    """See :func:`damped`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, thinning: Thinning, share: float) -> Tensor:
        ctx.thinning, ctx.share = thinning, share
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        kept = ctx.thinning.clear(grad.clone(memory_format=torch.contiguous_format))
        return grad.sub(kept, alpha=1.0 - ctx.share), None, None


def damped(weight: Tensor, thinning: Thinning, share: float) -> Tensor:
    """The same weights; a subnet's part of them gets only a share of the gradient.

    Args:
        weight: A matrix.
        thinning: The part, as the weights that a subnet keeps.
        share: In [0, 1].

    Returns:
        A view of ``weight``, so a chunk that cuDNN knows stays one.
    """
    return _Damped.apply(weight, thinning, share)  # type: ignore[no-any-return, no-untyped-call]


def _empty_like(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    if not weights[0].is_cuda:
        return [torch.empty_like(weight, dtype=dtype) for weight in weights]
    chunk = weights[0].new_empty(sum(weight.numel() for weight in weights), dtype=dtype)
    order = sorted(range(len(weights)), key=lambda index: weights[index].ndim == 1)
    parts = torch.split(chunk, [weights[index].numel() for index in order])
    views = dict(zip(order, parts, strict=True))
    return [views[index].view_as(weight) for index, weight in enumerate(weights)]
