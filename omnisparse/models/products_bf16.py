"""Matrix products in bfloat16 on a CPU, for numbers of rows that change from batch to batch.

oneDNN generates machine code for every new shape of a product. That takes milliseconds, longer
than the product itself where a net is small, and batches of speech rarely have the same number of
frames twice. So rows of zeros are put behind the real ones, up to one of few numbers; a zero adds
nothing to any sum.

Legend: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LEAST = 16
"""Numbers of rows are multiples of this."""

_STEPS = 16
"""Numbers of rows from one power of two to the next, so that at most 1/16 is added..."""

_SMALL = 64
"""...but they are at least this far apart, because the code of a small product costs more."""


def rounded_rows(rows: int) -> int:
    """The number of rows, at least ``rows``, that a product has."""
    step = _LEAST if rows <= _SMALL else max(_SMALL, (1 << (rows.bit_length() - 1)) // _STEPS)
    return -(-rows // step) * step


def with_rounded_rows(matrix: Tensor) -> Tensor:
    """``[R, I]`` with rows of zeros behind it; the same tensor where none are needed."""
    more = rounded_rows(len(matrix)) - len(matrix)
    return F.pad(matrix, (0, 0, 0, more)) if more else matrix


def is_bf16_on_cpu(tensor: Tensor) -> bool:
    """Whether autocast has products of this tensor made in bfloat16 on a CPU."""
    return (
        tensor.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
    )


def in_float32(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast off where a product of this tensor would be made in bfloat16 on a CPU.

    For products that are small and have many shapes: float32 ones need no code of their own.
    """
    return torch.autocast("cpu", enabled=False) if is_bf16_on_cpu(tensor) else nullcontext()


class _Product(torch.autograd.Function):
    """``inputs @ weight.T + bias`` of inputs with any strides; no copy of them is kept.

    With ``rounds``, numbers of rows are rounded in all three products.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, rounds: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.has_bias, ctx.rounds = bias is not None, rounds
        rows = inputs.reshape(-1, inputs.size(-1))
        if rounds:
            outputs = F.linear(with_rounded_rows(rows), weight, bias)[: len(rows)]
        else:  # torch's steps, and so its bits, where inputs are not contiguous
            outputs = rows.mm(weight.t())
        outputs = outputs.view(*inputs.shape[:-1], -1)
        return outputs if rounds or bias is None else outputs.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        grads = grad.reshape(-1, grad.size(-1))
        rounded = with_rounded_rows(grads) if ctx.rounds else grads
        inputs_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            inputs_grad = (rounded @ weight)[: len(grads)].view(inputs.shape)
        if ctx.needs_input_grad[1]:
            rows = inputs.reshape(-1, inputs.size(-1))
            weight_grad = rounded.t() @ (with_rounded_rows(rows) if ctx.rounds else rows)
        if ctx.has_bias:
            bias_grad = grads.sum(0) if ctx.rounds else grad.sum(tuple(range(grad.dim() - 1)))
        return inputs_grad, weight_grad, bias_grad, None


class Linear(nn.Linear):
    """``nn.Linear``; its products have rounded numbers of rows in bfloat16 on a CPU.

    Of inputs that are not contiguous, torch's own keeps a copy for the backward pass; this one
    makes it again.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., I]`` to ``[..., O]``, in autocast's dtype under autocast."""
        rounds = is_bf16_on_cpu(inputs)
        if not inputs.numel() or not (rounds or _would_be_copied(inputs)):
            return super().forward(inputs)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if not (rounds or weight.requires_grad):
            return F.linear(inputs, weight, bias)
        device = inputs.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            inputs, weight = inputs.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            outputs: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
                inputs, weight, bias, rounds
            )
        return outputs


def _would_be_copied(inputs: Tensor) -> bool:
    """Whether torch makes rows of these inputs by a copy, and keeps it."""
    return (
        inputs.dim() > 2
        and not inputs.is_contiguous()
        and inputs.device.type in ("cpu", "cuda")
        and torch.is_grad_enabled()
    )
