"""Dropout whose random numbers cost little on a CPU, and whose mask is one byte for each value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 1 << 22
"""Values of a tensor from which on memory counts more than a fraction of a millisecond."""

_LANES = 4
"""16-bit numbers that one draw of 64 random bits gives."""


class Dropout(nn.Dropout):
    """``nn.Dropout``: the same values, with less memory on a CPU, where torch's keeps a float mask.

    In bfloat16 on a CPU each value costs 16 random bits, not a draw of its own. There the
    probability is rounded to a multiple of 2^-16. The generator is torch's own.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape, some of them 0 in training and the others scaled up."""
        if values.dtype is not torch.bfloat16 and values.numel() < LARGE:
            return super().forward(values)  # a little quicker
        return self.with_kept(values)[0]

    def with_kept(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :meth:`forward`, and what :func:`dropped_again` needs; None where nothing is changed.

        Args:
            values: Of any shape.

        Returns:
            The values, and a mask of one byte for each of them.
        """
        if not self.training or self.p == 0 or not values.numel():
            return values, None
        dropped: Tensor
        if values.device.type == "cpu" and self.p < 1:
            dropped, kept = _Dropped.apply(values, self.p)  # type: ignore[no-untyped-call]
        else:
            dropped, kept = torch.native_dropout(values, self.p, True)
        return dropped, kept


def dropped_again(values: Tensor, kept: Tensor, probability: float) -> Tensor:
    """What :meth:`Dropout.with_kept` made of these values, to the bit; without a gradient.

    Args:
        values: Of any shape.
        kept: Its mask.
        probability: That of the layer at that time.
    """
    with torch.no_grad():
        if values.device.type == "cpu" and probability < 1:
            return _scaled(values, kept, probability)
        scale = 1 / (1 - probability) if probability < 1 else 0.0
        again: Tensor = torch.ops.aten.native_dropout_backward(values, kept, scale)
        return again


class _Dropped(torch.autograd.Function):
    """See :class:`Dropout`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> tuple[Tensor, Tensor]:
        if values.dtype is torch.bfloat16:
            kept = _drawn_from_few_bits(values, probability)
        else:
            # torch draws a float for each value; a bool takes the same draw.
            kept = torch.empty_like(values, dtype=torch.bool).bernoulli_(1 - probability)
        ctx.probability = probability
        ctx.save_for_backward(kept)
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        return _scaled(values, kept, probability), kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        (kept,) = ctx.saved_tensors
        return None if grad is None else _scaled(grad, kept, ctx.probability), None


def _threshold(probability: float) -> int:
    return round(probability * (1 << 16))


def _drawn_from_few_bits(values: Tensor, probability: float) -> Tensor:
    """int8 of the shape of the values: all bits where one stays, none elsewhere."""
    draws = torch.empty(-(-values.numel() // _LANES), dtype=torch.int64)
    draws.random_(-(1 << 63), None)
    lanes = draws.view(torch.int16)[: values.numel()].view(values.shape)
    # The difference is 32 bits wide, so that it has a sign.
    kept = lanes.to(torch.int32) + ((1 << 15) - _threshold(probability))
    return kept.bitwise_right_shift_(31).to(torch.int8).bitwise_not_()


def _scaled(values: Tensor, kept: Tensor, probability: float) -> Tensor:
    """Values that stay, scaled up, and 0 elsewhere: in float32 with the bits of torch's."""
    if values.dtype is torch.bfloat16:
        scaled = torch.mul(values, (1 << 16) / ((1 << 16) - _threshold(probability))).contiguous()
        scaled.view(torch.int16).bitwise_and_(kept.to(torch.int16))
        return scaled
    scale = torch.ones((), dtype=values.dtype).div_(1 - probability)
    # Not as bools, which torch converts ten times as slowly.
    return kept.view(torch.uint8).to(values.dtype).mul_(values).mul_(scale)
