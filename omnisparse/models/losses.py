"""Label losses and the lattice that a transducer distils.

Everything here computes in float32 whatever the inputs are.

Legend: B batch, T encoder frames, U tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional as F

LOG_ZERO = -1.0e4
"""Stands for log 0: its exp is 0 in every float type, and differences of two stay finite."""

_NEVER = -1.0e30
"""Log-probability of a node that no alignment passes, below that of any long one."""

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


def transducer_loss(lattice: Tensor, frame_lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """Negative log-likelihood of the labels, summed over the batch.

    The recursion reads only the label and the blank of a node, so the collapsed lattice is all
    that torchaudio's loss needs: the full posteriors are normalised once, not twice.

    Args:
        lattice: ``[B, T, U + 1, 3]`` float32 from ``lattice.join_lattice``, with T and U the
            longest lengths of the batch.
        frame_lengths: ``[B]`` int64, in 1..T.
        token_lengths: ``[B]`` int64, in 0..U.

    Returns:
        Scalar float32.

    Source: Graves 2012, arXiv:1211.3711, eqs. 12-18 (torchaudio's implementation).
    """
    batch, _, num_nodes, _ = lattice.shape
    targets = torch.full((batch, num_nodes - 1), LABEL, dtype=torch.int32, device=lattice.device)
    loss: Tensor = torchaudio.functional.rnnt_loss(
        lattice,
        targets,
        frame_lengths.int(),
        token_lengths.int(),
        blank=EMIT_BLANK,
        reduction="sum",
        fused_log_softmax=False,
    )
    return loss


def lattice_weights(frame_lengths: Tensor, token_lengths: Tensor, lattice: Tensor) -> Tensor:
    """Weights of the nodes of a lattice in a distillation loss.

    Args:
        frame_lengths: ``[B]`` int64.
        token_lengths: ``[B]`` int64.
        lattice: ``[B, T, U + 1, ...]``, only its shape is read.

    Returns:
        ``[B, T, U + 1]`` float32: ``1 / (U_b + 1)`` on valid nodes, 0 elsewhere, so that the
        weights of an utterance sum to its frames and the scale is free of the label length.
    """
    frames = length_mask(frame_lengths, lattice.size(1))
    nodes = length_mask(token_lengths + 1, lattice.size(2))
    scale = 1.0 / (token_lengths + 1).float()
    return frames[:, :, None] * nodes[:, None, :] * scale[:, None, None]


@torch.no_grad()
def lattice_occupancy(lattice: Tensor, valid: Tensor) -> Tensor:
    """How often the alignments of the labels pass each node, in expectation.

    Args:
        lattice: ``[B, T, U + 1, 3]`` float32 from ``lattice.join_lattice``.
        valid: ``[B, T, U + 1]`` bool, the nodes within the lengths; an utterance may have none.

    Returns:
        ``[B, T, U + 1]`` float32 in [0, 1], 0 beyond the lengths; no gradient. Every alignment
        passes T_b + U_b nodes, and so those of an utterance sum to that.

    Source: Graves 2012, arXiv:1211.3711, eqs. 16-18 and 21: ``alpha beta / P(y | x)``. Choice: one
    frame at a time, in which the recursion over labels is a cumulative logsumexp.
    """
    frames = valid.any(dim=2).sum(dim=1)
    is_label = valid & torch.cat([valid[:, :, 1:], torch.zeros_like(valid[:, :, :1])], dim=2)
    label = lattice[..., LABEL].masked_fill(~is_label, 0.0)
    blank = lattice[..., EMIT_BLANK]
    # before[u]: all labels below u, emitted in one frame.
    before = label.cumsum(dim=2) - label
    is_last = is_label.logical_not() & valid  # u = U_b
    entering = torch.full_like(label[:, 0], _NEVER)
    entering[:, 0] = 0.0
    leaving = torch.full_like(entering, _NEVER)
    alphas = []
    for t in range(lattice.size(1)):
        alpha = torch.logcumsumexp(entering - before[:, t], dim=1) + before[:, t]
        alphas.append(alpha)
        entering = _rescaled(alpha + blank[:, t])
    passed = []
    for t in reversed(range(lattice.size(1))):
        ends = (frames == t + 1)[:, None] & is_last[:, t]
        leaving = torch.where(ends, 0.0, leaving) + blank[:, t]
        leaving = leaving.masked_fill(~valid[:, t], _NEVER)
        beta = torch.logcumsumexp((leaving + before[:, t]).flip(1), dim=1).flip(1) - before[:, t]
        # Exactly one blank leaves a frame, which makes the scales of alpha and beta irrelevant.
        total = torch.logsumexp(alphas[t] + leaving, dim=1, keepdim=True)
        passed.append((alphas[t] + beta - total).exp())
        leaving = _rescaled(beta).masked_fill(~valid[:, t], _NEVER)
    passed.reverse()
    return torch.stack(passed, dim=1).masked_fill(~valid, 0.0).clamp(max=1.0)


def _rescaled(scores: Tensor) -> Tensor:
    """Scores whose largest is 0: float32 has no digits to spare on the size of a long sum."""
    return (scores - scores.amax(dim=1, keepdim=True)).clamp(min=_NEVER)


def ctc_loss(
    logits: Tensor, tokens: Tensor, frame_lengths: Tensor, token_lengths: Tensor
) -> Tensor:
    """CTC negative log-likelihood, summed over the batch.

    Args:
        logits: ``[B, T', V]``, blank 0.
        tokens: ``[B, U]`` int64, padded with anything.
        frame_lengths: ``[B]`` int64.
        token_lengths: ``[B]`` int64.

    Returns:
        Scalar in nats; an utterance whose tokens do not fit its frames (repetitions need a blank
        between them) counts 0.

    Source: Graves et al. 2006.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    return F.ctc_loss(
        log_probs, tokens, frame_lengths, token_lengths, reduction="sum", zero_infinity=True
    )
