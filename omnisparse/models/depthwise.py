"""Depthwise convolution over few frames and neighbouring channels, as a sum of products on a CPU.

Legend: B batch, T frames, D channels, K taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omnisparse.models.operations import count_product


def causal_depthwise(convolution: nn.Conv1d, frames: Tensor) -> Tensor:
    """``convolution`` along the second axis.

    Args:
        convolution: One group for each channel, with bias; no padding, stride or dilation.
        frames: ``[B, T + K - 1, D]``.

    Returns:
        ``[B, T, D]``; what ``convolution`` gives but for rounding.
    """
    if frames.device.type != "cpu" or not torch.is_grad_enabled():
        mixed: Tensor = convolution(frames.transpose(1, 2)).transpose(1, 2)
        return mixed
    weight, bias = convolution.weight, convolution.bias
    length = frames.size(1) - weight.size(2) + 1
    count_product(frames.size(0) * length * weight.numel(), frames, weight)
    summed: Tensor = _Taps.apply(frames, weight, bias)  # type: ignore[no-untyped-call]
    return summed


class _Taps(torch.autograd.Function):
    """One product for each tap, in float32 or better: channels stay neighbours."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dtype = torch.promote_types(frames.dtype, torch.float32)
        taps = weight[:, 0].t().to(dtype).contiguous()
        inputs = frames.to(dtype)
        length = frames.size(1) - len(taps) + 1
        total = bias.to(dtype).expand(frames.size(0), length, -1).clone()
        for shift, tap in enumerate(taps):
            total.addcmul_(inputs[:, shift : shift + length], tap)
        ctx.save_for_backward(inputs, taps)
        ctx.dtypes = frames.dtype, weight.dtype
        return total.to(frames.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, taps = ctx.saved_tensors
        grad = grad.to(inputs.dtype).contiguous()
        length = grad.size(1)
        inputs_grad, taps_grad = torch.zeros_like(inputs), torch.empty_like(taps)
        for shift, tap in enumerate(taps):
            seen = slice(shift, shift + length)
            inputs_grad[:, seen].addcmul_(grad, tap)
            taps_grad[shift] = (inputs[:, seen] * grad).sum((0, 1))
        of_frames, of_weight = ctx.dtypes
        return (
            inputs_grad.to(of_frames),
            taps_grad.t()[:, None].to(of_weight),
            grad.sum((0, 1)).to(of_weight),
        )
