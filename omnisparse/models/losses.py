"""Label losses, and the lattice for the distillation of a transducer.

Everything here computes in float32 for inputs of any type.

Legend: B batch, T encoder frames, U tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from omnisparse.models.products_bf16 import is_bf16_on_cpu
from omnisparse.models.rnnt_loss import rnnt_loss_and_uses
from omnisparse.models.torchaudio import find_torchaudio

LOG_ZERO = -1.0e4
"""Stands for log 0: its exp is 0 in every float type, and differences of two stay finite."""

LABEL, EMIT_BLANK, REST = 0, 1, 2
"""Order of the three values of a node in a collapsed lattice."""


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """``[B, size]`` bool, True where the position is below the ``[B]`` length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def label_smoothed_cross_entropy(
    log_probs: Tensor, targets: Tensor, mask: Tensor, *, smoothing: float
) -> Tensor:
    """Cross-entropy against one-hot targets mixed with the uniform distribution, summed.

    Args:
        log_probs: ``[B, U, V]`` float32 log-probabilities.
        targets: ``[B, U]`` int64.
        mask: ``[B, U]`` bool, True where a target counts.
        smoothing: Share of the uniform distribution, in [0, 1).

    Returns:
        Scalar float32.

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    loss = -(1.0 - smoothing) * log_probs.gather(-1, targets[..., None]).squeeze(-1)
    if smoothing > 0.0:
        loss = loss - smoothing * log_probs.mean(dim=-1)
    return loss.masked_fill(~mask, 0.0).sum()


def gradient_before_norm(grad: Tensor, lattice: Tensor) -> Tensor:
    """Gradient of a node's three scores from that of its normalised, clamped log-probabilities.

    Args:
        grad: ``[..., 3]``.
        lattice: ``[..., 3]``; a clamped value is a constant, so it has no gradient.
    """
    grad = grad.masked_fill(lattice <= LOG_ZERO, 0.0)
    return grad - lattice.exp() * grad.sum(dim=-1, keepdim=True)


class _TransducerLoss(torch.autograd.Function):
    """Loss and gradient are computed together, so both are stored."""

    @staticmethod
    def forward(
        ctx: Any, lattice: Tensor, frame_lengths: Tensor, token_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        torchaudio, _ = find_torchaudio()
        if torchaudio is None or _ours_is_quicker(lattice):
            loss, grad = _loss_in_torch(lattice, frame_lengths, token_lengths)
        else:
            loss, grad = _loss_in_torchaudio(torchaudio, lattice, frame_lengths, token_lengths)
        # Every alignment leaves a frame by exactly one blank. In float32 torchaudio's sums differ
        # from 1 for long and unlikely utterances (up to 2.5 for 3,000 frames of e^-12 a step).
        blanks = grad[..., EMIT_BLANK].sum(dim=2, keepdim=True)
        occupancy = grad.sum(dim=-1) / blanks.masked_fill(blanks == 0, 1.0)
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(occupancy)
        return loss, occupancy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * scale, None, None


def _ours_is_quicker(lattice: Tensor) -> bool:
    """Whether this is a bfloat16 step on a CPU, where our loss takes half the time of torchaudio's.

    A float32 run goes on bit by bit with the loss with which earlier versions began it.
    """
    return is_bf16_on_cpu(lattice)


def _loss_in_torchaudio(
    torchaudio: Any, lattice: Tensor, frame_lengths: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Scalar loss, and its gradient by the lattice."""
    batch, _, num_nodes, _ = lattice.shape
    device = lattice.device
    targets = torch.full((batch, num_nodes - 1), LABEL, dtype=torch.int32, device=device)
    with torch.enable_grad():
        leaf = lattice.detach().requires_grad_()
        loss = torchaudio.functional.rnnt_loss(
            leaf,
            targets,
            frame_lengths.to(device, torch.int32, non_blocking=True),
            token_lengths.to(device, torch.int32, non_blocking=True),
            blank=EMIT_BLANK,
            reduction="sum",
            fused_log_softmax=False,
        )
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


def _loss_in_torch(
    lattice: Tensor, frame_lengths: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`_loss_in_torchaudio`."""
    losses, label_uses, blank_uses = rnnt_loss_and_uses(
        lattice[..., LABEL], lattice[..., EMIT_BLANK], frame_lengths, token_lengths
    )
    grad = torch.zeros_like(lattice)
    grad[..., LABEL], grad[..., EMIT_BLANK] = -label_uses, -blank_uses
    return losses.sum().to(lattice.dtype), grad


def transducer_loss(
    lattice: Tensor, frame_lengths: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the labels, and the expected number of alignments at each node.

    The recursion reads only the label and the blank of a node. So the loss needs only the
    collapsed lattice, and the full posteriors are normalised once, not twice. torchaudio computes
    it; where that does not load, :mod:`omnisparse.models.rnnt_loss` does.

    Args:
        lattice: ``[B, T, U + 1, 3]`` float32 from ``lattice.join_lattice``, with T and U the
            longest lengths of the batch.
        frame_lengths: ``[B]`` int64, in 1..T.
        token_lengths: ``[B]`` int64, in 0..U.

    Returns:
        Scalar float32 summed over the batch; and the occupancy, ``[B, T, U + 1]`` float32 in
        [0, 1] and 0 beyond the lengths, without gradient. Every alignment passes T_b + U_b nodes,
        so the occupancy of an utterance sums to T_b + U_b.

    Source: Graves 2012, arXiv:1211.3711, eqs. 12-18 and 21: the
    derivative of the loss by a log-probability is minus the expected number of its uses, and an
    alignment leaves every node on its path exactly once.
    """
    pair: tuple[Tensor, Tensor] = _TransducerLoss.apply(  # type: ignore[no-untyped-call]
        lattice, frame_lengths, token_lengths
    )
    return pair


def lattice_weights(frame_lengths: Tensor, token_lengths: Tensor, lattice: Tensor) -> Tensor:
    """Weights of the nodes of a lattice in a distillation loss.

    Args:
        frame_lengths: ``[B]`` int64.
        token_lengths: ``[B]`` int64.
        lattice: ``[B, T, U + 1, ...]``, only its shape is read.

    Returns:
        ``[B, T, U + 1]`` float32: ``1 / (U_b + 1)`` on valid nodes, 0 elsewhere. So the weights of
        an utterance sum to its number of frames and do not depend on the label length.
    """
    frame_lengths, token_lengths = (
        lengths.to(lattice.device, non_blocking=True) for lengths in (frame_lengths, token_lengths)
    )
    frames = length_mask(frame_lengths, lattice.size(1))
    nodes = length_mask(token_lengths + 1, lattice.size(2))
    scale = 1.0 / (token_lengths + 1).float()
    return frames[:, :, None] * nodes[:, None, :] * scale[:, None, None]


def ctc_loss(
    logits: Tensor, tokens: Tensor, frame_lengths: Tensor, token_lengths: Tensor
) -> Tensor:
    """CTC negative log-likelihood, summed over the batch.

    Args:
        logits: ``[B, T', V]``, blank 0.
        tokens: ``[B, U]`` int64, padded with any value.
        frame_lengths: ``[B]`` int64.
        token_lengths: ``[B]`` int64.

    Returns:
        Scalar in nats. An utterance with too few frames for its tokens (repeated tokens need a
        blank between them) counts 0.

    Source: Graves et al. 2006.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    return F.ctc_loss(
        log_probs, tokens, frame_lengths, token_lengths, reduction="sum", zero_infinity=True
    )
