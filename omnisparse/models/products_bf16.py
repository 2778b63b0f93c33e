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
    """``inputs @ weight.T + bias`` with rounded numbers of rows in all three products."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rounded = with_rounded_rows(inputs)
        ctx.save_for_backward(rounded, weight)
        ctx.has_bias = bias is not None
        return F.linear(rounded, weight, bias)[: len(inputs)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        rounded = with_rounded_rows(grad)
        return (
            (rounded @ weight)[: len(grad)] if ctx.needs_input_grad[0] else None,
            rounded.t() @ inputs if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.has_bias else None,
        )


class Linear(nn.Linear):
    """``nn.Linear``; its products have rounded numbers of rows in bfloat16 on a CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., I]`` to ``[..., O]``, in autocast's dtype under autocast."""
        if not is_bf16_on_cpu(inputs) or not inputs.numel():
            return super().forward(inputs)
        dtype = torch.bfloat16
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast("cpu", enabled=False):
            rows = inputs.to(dtype).reshape(-1, inputs.size(-1))
            outputs: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
                rows, self.weight.to(dtype), bias
            )
        return outputs.view(*inputs.shape[:-1], -1)
