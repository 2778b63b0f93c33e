"""Dropout whose random numbers cost little on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LANES = 4
"""16-bit numbers that one draw of 64 random bits gives."""


class Dropout(nn.Dropout):
    """``nn.Dropout``; in bfloat16 on a CPU each value costs 16 random bits, not a draw of its own.

    There the probability is rounded to a multiple of 2^-16. The generator is torch's own.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape, some of them 0 in training and the others scaled up."""
        if not self.training or self.p == 0:
            return values
        if values.dtype is torch.bfloat16 and values.device.type == "cpu" and self.p < 1:
            dropped: Tensor = _FewBits.apply(values, self.p)  # type: ignore[no-untyped-call]
            return dropped
        return super().forward(values)


class _FewBits(torch.autograd.Function):
    """See :class:`Dropout`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        threshold = round(probability * (1 << 16))
        ctx.scale = (1 << 16) / ((1 << 16) - threshold)
        draws = torch.empty(-(-values.numel() // _LANES), dtype=torch.int64)
        draws.random_(-(1 << 63), None)
        lanes = draws.view(torch.int16)[: values.numel()].view(values.shape)
        # All bits where the value stays: the difference is 32 bits wide, so that it has a sign.
        kept = (lanes.to(torch.int32) + ((1 << 15) - threshold)).bitwise_right_shift_(31)
        kept = kept.to(torch.int16).bitwise_not_()
        ctx.save_for_backward(kept)
        return _scaled(values, ctx.scale, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _scaled(grad, ctx.scale, kept), None


def _scaled(values: Tensor, scale: float, kept: Tensor) -> Tensor:
    scaled = torch.mul(values, scale).contiguous()
    scaled.view(torch.int16).bitwise_and_(kept)
    return scaled
