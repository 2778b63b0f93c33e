"""Joiner and transducer lattice in one pass that never keeps a tensor over the vocabulary.

A transducer scores V tokens at each of T x (U + 1) nodes, but its loss reads only two of them and
its distillation only three sums. So logits are computed for a few utterances at a time, collapsed
and dropped, and computed again in the backward pass. This costs a third more matrix products, but
memory is 3 values per node for any V, and no work is spent on padding.

Legend: B batch, T encoder frames, U tokens, N = U + 1 nodes of a frame, J joiner, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from omnisparse.models.bf16_kernels import kernels
from omnisparse.models.lattice_bf16 import join_lattice_bf16
from omnisparse.models.losses import (
    EMIT_BLANK,
    LABEL,
    LOG_ZERO,
    REST,
    gradient_before_norm,
    length_mask,
)
from omnisparse.models.operations import count_product

Activation = Literal["tanh", "relu"]

CHUNK_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 26}
"""Logits in memory at a time: they fit a CPU's cache, and are enough to use a GPU fully."""

_PADDING = -1.0986123
"""log(1/3): nodes beyond the lengths are uniform, so that every node is a distribution."""


def join_lattice(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    tokens: Tensor,
    frame_lengths: Tensor,
    token_lengths: Tensor,
    blank: int = 0,
    activation: Activation = "tanh",
) -> Tensor:
    """``log (P(y_{u+1}), P(blank), P(anything else))`` at every node of a batch.

    The logits of a node are ``weight tanh(encoded_t + predicted_u) + bias``, or with ``relu``.

    Args:
        encoded: ``[B, T, J]``, projected.
        predicted: ``[B, N, J]``, projected.
        weight: ``[V, J]``, V > 2.
        bias: ``[V]``.
        tokens: ``[B, N - 1]`` int64, never ``blank`` below the lengths.
        frame_lengths: ``[B]`` int64, in 1..T; best on the CPU, where they are read.
        token_lengths: ``[B]`` int64, in 0..N - 1; likewise.
        blank: Id of the blank.
        activation: Of the sum of both sides.

    Returns:
        ``[B, T, N, 3]`` float32, in ``[LOG_ZERO, 0]``; each node sums to one. At u = U_b there
        is no label: its value is ``LOG_ZERO`` and its probability is part of the rest. Nodes
        beyond the lengths are uniform and have no gradient.

    Source: Panchapagesan et al. 2020, arXiv:2011.06110 (the three-way posterior). Choice: no
    label means a probability of zero at u = U_b; the paper's treatment could not be read.
    """
    frames, nodes = frame_lengths.tolist(), (token_lengths + 1).tolist()
    frame_lengths, token_lengths = (
        lengths.to(encoded.device, non_blocking=True) for lengths in (frame_lengths, token_lengths)
    )
    # A label of `blank` says that the node has none.
    labels = F.pad(tokens, (0, 1)).masked_fill(
        ~length_mask(token_lengths, predicted.size(1)), blank
    )
    chunks = list(
        _chunks(
            frames,
            nodes,
            limit=CHUNK_ELEMENTS.get(encoded.device.type, CHUNK_ELEMENTS["cuda"]),
            vocab_size=weight.size(0),
        )
    )
    scored = sum((rows.stop - rows.start) * t * n for rows, t, n in chunks)
    count_product(scored * weight.numel(), encoded, weight, again=1)
    dtype = encoded.dtype
    arguments = (predicted.to(dtype), weight.to(dtype), bias.to(dtype), labels, chunks, blank)
    library = kernels() if dtype is torch.bfloat16 and encoded.device.type == "cpu" else None
    lattice: Tensor
    if library is None or activation != "tanh":
        lattice = _JoinLattice.apply(  # type: ignore[no-untyped-call]
            encoded, *arguments, activation
        )
    else:
        lattice = join_lattice_bf16(library, encoded, *arguments)
    padding = ~(
        length_mask(frame_lengths, encoded.size(1))[:, :, None]
        & length_mask(token_lengths + 1, predicted.size(1))[:, None, :]
    )
    return lattice.masked_fill(padding[..., None], _PADDING)


def collapse(logits: Tensor, labels: Tensor, *, blank: int) -> Tensor:
    """Reduce logits to the three log-probabilities of a node.

    Args:
        logits: ``[B, T, N, V]`` float32; label and blank are overwritten with minus infinity.
        labels: ``[B, N]`` int64, ``blank`` where there is no label.
        blank: Id of the blank.

    Returns:
        ``[B, T, N, 3]`` float32 in ``[LOG_ZERO, 0]``.
    """
    index = labels[:, None, :, None].expand(-1, logits.size(1), -1, 1)
    no_label = index == blank
    label = logits.gather(-1, index).masked_fill_(no_label, float("-inf"))
    emit_blank = logits[..., blank : blank + 1].clone()
    _hide(logits, index, blank)
    # Sum over the other tokens: 1 - P(y) - P(blank) would lose all digits of a small rest.
    rest = torch.logsumexp(logits, dim=-1, keepdim=True)
    lattice = torch.log_softmax(torch.cat([label, emit_blank, rest], dim=-1), dim=-1)
    return lattice.clamp_(min=LOG_ZERO)


class _JoinLattice(torch.autograd.Function):
    """See :func:`join_lattice`; the backward pass makes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        encoded: Tensor,
        predicted: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        chunks: list[tuple[slice, int, int]],
        blank: int,
        activation: Activation,
    ) -> Tensor:
        lattice = encoded.new_zeros(
            encoded.size(0), encoded.size(1), predicted.size(1), 3, dtype=torch.float32
        )
        hidden_of = _activations(encoded, predicted, activation)
        for rows, frames, nodes in chunks:
            logits = F.linear(hidden_of(rows, frames, nodes), weight, bias).float()
            lattice[rows, :frames, :nodes] = collapse(logits, labels[rows, :nodes], blank=blank)
        ctx.save_for_backward(encoded, predicted, weight, bias, labels, lattice)
        ctx.chunks, ctx.blank, ctx.activation = chunks, blank, activation
        return lattice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        encoded, predicted, weight, bias, labels, lattice = ctx.saved_tensors
        scores_grad = gradient_before_norm(grad, lattice)
        encoded_grad, predicted_grad = torch.zeros_like(encoded), torch.zeros_like(predicted)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        bias_grad = torch.zeros_like(bias, dtype=torch.float32)
        hidden_of = _activations(encoded, predicted, ctx.activation)
        for rows, frames, nodes in ctx.chunks:
            hidden = hidden_of(rows, frames, nodes)
            logits_grad = _logits_grad(
                F.linear(hidden, weight, bias).float(),
                labels[rows, :nodes],
                scores_grad[rows, :frames, :nodes],
                ctx.blank,
            )
            bias_grad += logits_grad.sum(dim=(0, 1, 2))
            logits_grad = logits_grad.to(weight.dtype)
            weight_grad += logits_grad.flatten(0, 2).t() @ hidden.flatten(0, 2)
            total_grad = logits_grad @ weight
            if ctx.activation == "tanh":
                total_grad = torch.ops.aten.tanh_backward(total_grad, hidden)
            else:
                total_grad = total_grad.masked_fill_(hidden <= 0, 0.0)
            encoded_grad[rows, :frames] = total_grad.sum(dim=2)
            predicted_grad[rows, :nodes] = total_grad.sum(dim=1)
        dtype = weight.dtype
        parameters_grad = weight_grad.to(dtype), bias_grad.to(dtype)
        return encoded_grad, predicted_grad, *parameters_grad, None, None, None, None


def _activations(
    encoded: Tensor, predicted: Tensor, activation: Activation = "tanh"
) -> Callable[[slice, int, int], Tensor]:
    """Function that computes the ``[b, t, n, J]`` joiner activations of some rows and nodes."""

    def activations(rows: slice, frames: int, nodes: int) -> Tensor:
        total = encoded[rows, :frames, None] + predicted[rows, None, :nodes]
        return total.tanh_() if activation == "tanh" else total.relu_()

    return activations


def _hide(logits: Tensor, index: Tensor, blank: int) -> None:
    """Overwrite label and blank, so that a sum over the vocabulary leaves them out."""
    logits.scatter_(-1, index, float("-inf"))
    logits[..., blank] = float("-inf")


def _logits_grad(logits: Tensor, labels: Tensor, scores_grad: Tensor, blank: int) -> Tensor:
    """Gradient of the logits from the gradient of a node's three scores; overwrites ``logits``."""
    index = labels[:, None, :, None].expand(-1, logits.size(1), -1, 1)
    _hide(logits, index, blank)
    grad = torch.softmax(logits, dim=-1).mul_(scores_grad[..., REST:])
    grad.scatter_(-1, index, scores_grad[..., LABEL : LABEL + 1])
    # Done after the labels, because a node without a label has the blank as its label.
    grad[..., blank] = scores_grad[..., EMIT_BLANK]
    return grad


def _chunks(
    frames: list[int], nodes: list[int], *, limit: int, vocab_size: int
) -> Iterator[tuple[slice, int, int]]:
    """Split a batch: rows, and the frames and nodes that their logits need.

    Neighbouring rows form one chunk while their padded logits stay below ``limit`` elements.
    """
    start = 0
    while start < len(frames):
        stop, longest, widest = start + 1, frames[start], nodes[start]
        while stop < len(frames):
            longer, wider = max(longest, frames[stop]), max(widest, nodes[stop])
            if (stop + 1 - start) * longer * wider * vocab_size > limit:
                break
            stop, longest, widest = stop + 1, longer, wider
        yield slice(start, stop), longest, widest
        start = stop
