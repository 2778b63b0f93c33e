"""The transducer's forward-backward recursion in torch alone, for where torchaudio does not load.

Nodes (t, u) of one anti-diagonal t + u = n depend only on those of the diagonal before. So the
lattice is skewed until its diagonals are rows, and a row of the whole batch is a few operations.
All sums are in log space and float64, which keeps long and unlikely utterances exact.

Legend: B batch, T encoder frames, U tokens, N = U + 1 nodes of a frame, D = T + N - 1 diagonals.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_NEVER = -1.0e30
"""log 0 in float64; finite, so that a sum of several is no NaN."""


def rnnt_loss_and_uses(
    label: Tensor, blank: Tensor, frame_lengths: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihoods, and the expected uses of each label and blank.

    Args:
        label: ``[B, T, N]`` log-probability of the next label; not read at and beyond u = U_b.
        blank: ``[B, T, N]`` log-probability of the blank.
        frame_lengths: ``[B]`` int64, in 1..T.
        token_lengths: ``[B]`` int64, in 0..N - 1.

    Returns:
        ``[B]`` float64 losses; and twice ``[B, T, N]`` float64 in [0, 1], 0 beyond the lengths:
        the share of alignments that use the label, and the blank, of each node. These are minus
        the derivatives of the losses by the log-probabilities.

    Source: Graves 2012, arXiv:1211.3711, eqs. 16-18 and 20. The skewed rows are those of
    Bagby et al. 2018, "Efficient implementation of recurrent neural network transducer in
    TensorFlow".
    """
    batch, frames, nodes = label.shape
    device = label.device
    frame_lengths, token_lengths = frame_lengths.to(device), token_lengths.to(device)
    is_frame = torch.arange(frames, device=device)[None, :] < frame_lengths[:, None]
    places = torch.arange(nodes, device=device)[None, :]
    has_label = is_frame[:, :, None] & (places < token_lengths[:, None])[:, None, :]
    has_blank = is_frame[:, :, None] & (places <= token_lengths[:, None])[:, None, :]
    labels = _skewed(label.double().masked_fill(~has_label, _NEVER))
    blanks = _skewed(blank.double().masked_fill(~has_blank, _NEVER))
    diagonals = labels.size(0)

    alpha = labels.new_full((diagonals + 1, batch, nodes), _NEVER)
    alpha[0, :, 0] = 0.0
    for n in range(diagonals):
        row = alpha[n + 1]
        torch.add(alpha[n], blanks[n], out=row)
        if nodes > 1:
            torch.logaddexp(row[:, 1:], alpha[n, :, :-1] + labels[n, :, :-1], out=row[:, 1:])

    # An alignment ends one blank behind the last frame, at the node (T_b, U_b).
    rows, last = torch.arange(batch, device=device), frame_lengths + token_lengths
    beta = torch.full_like(alpha, _NEVER)
    ends = torch.full_like(alpha, _NEVER)
    ends[last, rows, token_lengths] = 0.0
    beta[diagonals] = ends[diagonals]
    for n in reversed(range(diagonals)):
        row = beta[n]
        torch.add(beta[n + 1], blanks[n], out=row)
        if nodes > 1:
            step = beta[n + 1, :, 1:] + labels[n, :, :-1]
            torch.logaddexp(row[:, :-1], step, out=row[:, :-1])
        torch.maximum(row, ends[n], out=row)

    total = beta[0, :, 0]
    before = alpha[:-1] - total[:, None]
    blank_uses = (before + blanks + beta[1:]).exp()
    label_uses = torch.zeros_like(blank_uses)
    label_uses[:, :, :-1] = (before + labels + F.pad(beta[1:, :, 1:], (0, 1)))[:, :, :-1].exp()
    return -total, _straight(label_uses, frames), _straight(blank_uses, frames)


def _skewed(values: Tensor) -> Tensor:
    """Diagonals as rows: ``[B, T, N]`` to contiguous ``[D, B, N]``, entry n of node u at t = n - u.

    What lies outside the lattice is ``_NEVER``.
    """
    batch, frames, nodes = values.shape
    columns = F.pad(values.transpose(1, 2), (0, nodes), value=_NEVER)  # [B, N, T + N]
    flat = columns.reshape(batch, -1)[:, : nodes * (frames + nodes - 1)]
    return flat.reshape(batch, nodes, frames + nodes - 1).permute(2, 0, 1).contiguous()


def _straight(rows: Tensor, frames: int) -> Tensor:
    """The inverse of :func:`_skewed`: ``[D, B, N]`` to ``[B, T, N]``."""
    diagonals, batch, nodes = rows.shape
    flat = F.pad(rows.permute(1, 2, 0).reshape(batch, -1), (0, nodes))
    return flat.reshape(batch, nodes, diagonals + 1)[:, :, :frames].transpose(1, 2)
