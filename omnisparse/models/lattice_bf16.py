"""The collapsed lattice of a joiner in bfloat16 on a CPU, by compiled kernels.

What :mod:`omnisparse.models.lattice` does with a dozen passes over the activations and logits of
each node is one pass here; the products of matrices stay torch's. Like there, nothing over the
vocabulary is kept: the backward pass makes activations and logits again.

Legend: B batch, T encoder frames, N nodes of a frame, J joiner, V vocabulary.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from omnisparse.models.losses import LOG_ZERO, gradient_before_norm
from omnisparse.models.products_bf16 import rounded_rows

_LANES = 16
"""Values that C sums side by side."""

_LARGEST_SUMMAND = 43.0
"""Largest summand of a tanh: the exponential of its double, and the reciprocal, fit a float32."""


class _Nodes:
    """Activations and logits of some rows and nodes of a batch.

    tanh takes one division per node instead of one exponential: tanh(a + b) = 1 - 2 / (1 + exp(2a)
    exp(2b)). Deviation: a and b are limited to +-43, because larger exponentials do not fit
    float32; tanh is +-1 there.
    """

    def __init__(
        self, library: ctypes.CDLL, encoded: Tensor, predicted: Tensor, labels: Tensor
    ) -> None:
        self.library = library
        self.labels = labels
        self.left, self.right = (
            side.float().clamp_(-_LARGEST_SUMMAND, _LARGEST_SUMMAND).mul_(2).exp_().contiguous()
            for side in (encoded, predicted)
        )
        self.dtype = encoded.dtype

    def hidden(
        self, rows: slice, frames: int, nodes: int
    ) -> tuple[Tensor, tuple[int, int, int, int]]:
        """``[R, J]`` activations of ``[b, t, n]``, with rows of zeros behind; (b, t, n, J)."""
        left, right = self.left[rows], self.right[rows]
        shape = len(left), frames, nodes, left.size(2)
        real = math.prod(shape[:3])
        hidden = left.new_empty(rounded_rows(real), shape[3], dtype=self.dtype)
        hidden[real:] = 0
        self.library.omni_join(
            *shape, left.data_ptr(), left.stride(0), right.data_ptr(), right.stride(0),
            hidden.data_ptr(),
        )  # fmt: skip
        return hidden, shape

    def labels_of(self, rows: slice, nodes: int) -> Tensor:
        """``[b, n]`` labels, contiguous."""
        return self.labels[rows, :nodes].contiguous()


class _JoinLattice(torch.autograd.Function):
    """See :func:`join_lattice_bf16`."""

    @staticmethod
    def forward(
        ctx: Any,
        library: ctypes.CDLL,
        encoded: Tensor,
        predicted: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        chunks: list[tuple[slice, int, int]],
        blank: int,
    ) -> Tensor:
        shape = encoded.size(0), encoded.size(1), predicted.size(1), 3
        lattice = encoded.new_zeros(shape, dtype=torch.float32)
        place = _Nodes(library, encoded, predicted, labels)
        scratch = torch.empty(weight.size(0) + _LANES)
        for rows, frames, nodes in chunks:
            hidden, shape = place.hidden(rows, frames, nodes)
            logits = F.linear(hidden, weight, bias)
            some, ids = torch.empty(*shape[:3], 3), place.labels_of(rows, nodes)
            library.omni_collapse(
                *shape[:3], len(weight), logits.data_ptr(), ids.data_ptr(), blank,
                LOG_ZERO, scratch.data_ptr(), some.data_ptr(),
            )  # fmt: skip
            lattice[rows, :frames, :nodes] = some
        ctx.save_for_backward(encoded, predicted, weight, bias, labels, lattice)
        ctx.library, ctx.chunks, ctx.blank = library, chunks, blank
        return lattice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        encoded, predicted, weight, bias, labels, lattice = ctx.saved_tensors
        scores_grad = gradient_before_norm(grad, lattice)
        left_grad, right_grad = (torch.zeros(side.shape) for side in (encoded, predicted))
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        bias_grad = torch.zeros_like(bias, dtype=torch.float32)
        place = _Nodes(ctx.library, encoded, predicted, labels)
        scratch = torch.empty(weight.size(0) + _LANES)
        for rows, frames, nodes in ctx.chunks:
            hidden, shape = place.hidden(rows, frames, nodes)
            logits = F.linear(hidden, weight, bias)
            scores = scores_grad[rows, :frames, :nodes].contiguous()
            ids = place.labels_of(rows, nodes)
            ctx.library.omni_collapse_backward(
                *shape[:3], len(weight), logits.data_ptr(), ids.data_ptr(),
                ctx.blank, scores.data_ptr(), scratch.data_ptr(), bias_grad.data_ptr(),
            )  # fmt: skip
            weight_grad += logits.t() @ hidden  # zeros behind the last node
            reached = logits @ weight
            left, right = left_grad[rows], right_grad[rows]
            ctx.library.omni_join_backward(
                *shape, reached.data_ptr(), hidden.data_ptr(), left.data_ptr(),
                left.stride(0), right.data_ptr(), right.stride(0),
            )  # fmt: skip
        grads = (left_grad, right_grad, weight_grad, bias_grad)
        return None, *(one.to(encoded.dtype) for one in grads), None, None, None


def join_lattice_bf16(
    library: ctypes.CDLL,
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    chunks: list[tuple[slice, int, int]],
    blank: int,
) -> Tensor:
    """``log (P(y_{u+1}), P(blank), P(anything else))`` of every node that a chunk covers.

    Args:
        library: The kernels.
        encoded: ``[B, T, J]`` bfloat16, projected, on the CPU.
        predicted: ``[B, N, J]`` bfloat16, projected.
        weight: ``[V, J]`` bfloat16, V > 2.
        bias: ``[V]`` bfloat16.
        labels: ``[B, N]`` int64, ``blank`` where a node has no label.
        chunks: Rows, and the frames and nodes that their logits need.
        blank: Id of the blank.

    Returns:
        ``[B, T, N, 3]`` float32, in ``[LOG_ZERO, 0]``; 0 elsewhere.
    """
    lattice: Tensor = _JoinLattice.apply(  # type: ignore[no-untyped-call]
        library, encoded, predicted, weight, bias, labels, chunks, blank
    )
    return lattice
