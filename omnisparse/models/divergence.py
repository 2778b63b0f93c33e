"""How far a student's outputs are from its teacher's, position by position.

Everything here computes in float32 from log-probabilities, so that no probability that underflows
to zero ever meets its own logarithm.

Legend: B batch, T' encoder frames, D width, K classes of a posterior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omnisparse.models.losses import LOG_ZERO, length_mask

_LARGEST_EXPONENT = 40.0
"""Of a weight without a clip: its tangent's slope, up to the square of that, is a float32."""


def kl_divergence(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    """``KL(teacher || student)`` of every position.

    Args:
        teacher_log: ``[..., K]`` log-probabilities, detached.
        student_log: ``[..., K]`` log-probabilities.

    Returns:
        ``[...]`` float32 (float64 where given so), in nats.
    """
    teacher_log, student_log = _wide(teacher_log), _wide(student_log)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1)


def alpha_divergence(
    teacher_log: Tensor, student_log: Tensor, alpha: float, *, clip: float = math.inf
) -> Tensor:
    """The alpha-divergence of every position, its importance weights clipped.

    With teacher p, student q and ratio r = p / q it is ``D = sum_k q_k f(r_k)``, where ``f(r) =
    (r^alpha - 1) / (alpha (alpha - 1))``; alpha = 1 is the limit KL(p || q). Because ``sum q
    d(log q) = 0``, its gradient is ``-1 / alpha * sum q r^alpha d(log q)``: the score of each
    class weighed by ``r^alpha``, which grows without bound where the two disagree. Limiting that
    weight to ``clip`` is the same as continuing f by its tangent beyond the ratio where it is
    reached: f stays convex, so the clipped loss is a divergence too, never negative and finite
    for any logits, and the gradient below is exactly its own.

    Args:
        teacher_log: ``[..., K]`` log-probabilities, detached.
        student_log: ``[..., K]`` log-probabilities with rows that sum to one.
        alpha: Any finite number but 0; above 1 a student is punished most for missing what the
            teacher finds likely, below 0 for claiming what the teacher finds unlikely.
        clip: Largest weight of a class, at least 1.

    Returns:
        ``[...]`` float32 (float64 where given so), at least 0.

    Raises:
        ValueError: If ``alpha`` is 0 or not finite, or ``clip`` is below 1.

    Source: Minka 2005 for the divergence; Wang et al. 2021 (AlphaNet, arXiv:2102.07954) for its
    use in a supernet and for clipping. The surrogate and its tangent are derived here.
    Deviation: the weights of alpha = 1 are clipped like all others.
    """
    if not math.isfinite(alpha) or alpha == 0:
        raise ValueError(f"alpha is {alpha}; a finite number other than 0")
    if not clip >= 1:
        raise ValueError(f"clip is {clip}; at least 1")
    # A probability of zero is LOG_ZERO whatever computed it: differences of two stay finite.
    teacher_log = _wide(teacher_log).detach().clamp(min=LOG_ZERO)
    student_log = _wide(student_log).clamp(min=LOG_ZERO)
    fixed = student_log.detach()
    limit = min(math.log(clip), _LARGEST_EXPONENT * min(1.0, abs(alpha)))
    log_weight = alpha * (teacher_log - fixed)
    # q r^alpha as one exponential: q alone may be 0 where r is infinite.
    weight = (fixed + log_weight.clamp(max=limit)).exp()
    surrogate = -(weight * student_log).sum(-1) / alpha
    p, q = teacher_log.exp(), fixed.exp()
    if alpha == 1:
        within = p * (teacher_log - fixed) - p + q
    else:  # the term linear in r sums to nothing, and makes every class's share positive
        within = (weight - q - alpha * (p - q)) / (alpha * (alpha - 1))
    ratio, height, slope = _tangent(alpha, limit)
    beyond = q * height + slope * (p - q * ratio)
    value = torch.where(log_weight > limit, beyond, within).sum(-1).clamp(min=0.0)
    return value + (surrogate - surrogate.detach())


def _tangent(alpha: float, limit: float) -> tuple[float, float, float]:
    """Where ``log r^alpha`` is ``limit``: r, f(r) and f'(r), with f(1) = f'(1) = 0."""
    ratio = math.exp(limit / alpha)
    if alpha == 1:
        return ratio, ratio * limit - ratio + 1, limit
    height = (math.exp(limit) - 1 - alpha * (ratio - 1)) / (alpha * (alpha - 1))
    return ratio, height, (math.exp(limit) / ratio - 1) / (alpha - 1)


def _wide(log_probs: Tensor) -> Tensor:
    return log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))


def adaptive_alpha_divergence(
    teacher_log: Tensor, student_log: Tensor, *, alphas: tuple[float, float], clip: float
) -> Tensor:
    """The larger of two alpha-divergences at every position.

    A negative alpha punishes a student that is unsure where the teacher is sure of what it is
    not, a positive one the reverse; taking the larger of the two prevents both.

    Args:
        teacher_log: ``[..., K]`` log-probabilities, detached.
        student_log: ``[..., K]`` log-probabilities.
        alphas: The two values.
        clip: Largest importance weight, at least 1.

    Returns:
        ``[...]`` float32 (float64 where given so); the gradient is that of the larger one.

    Source: Wang et al. 2021 (arXiv:2102.07954): ``max(D_alpha-, D_alpha+)``.
    Choice: the maximum is taken at each position (node of a lattice, token), not over sums.
    """
    low, high = (alpha_divergence(teacher_log, student_log, a, clip=clip) for a in alphas)
    return torch.maximum(low, high)


def encoder_distance(teacher: Tensor, student: Tensor, lengths: Tensor) -> Tensor:
    """Squared error of a student's encoder, in units of the teacher's energy in each utterance.

    Args:
        teacher: ``[B, T', D]``, detached; may be padded further than the student's.
        student: ``[B, T', D]``.
        lengths: ``[B]`` int64 frames of each utterance.

    Returns:
        Scalar float32, summed over frames: 0 for equal encoders, one a frame for a student of
        zeros, whatever scale and width the encoder has.

    Source: Tian et al. 2021 (CoDERT, arXiv:2106.07734) for in-place distillation of a transducer's
    encoder. Deviation: they match logits of an output layer on the encoder; here what the joiner
    or the attention reads is matched directly, which needs no further layer.
    """
    lengths = lengths.to(student.device, non_blocking=True)
    mask = length_mask(lengths, student.size(1))[..., None]
    target = teacher[:, : student.size(1)].detach().float().masked_fill(~mask, 0.0)
    error = (student.float() - target).masked_fill(~mask, 0.0).square().sum(dim=(1, 2))
    # Of each utterance by itself: a loss must not depend on what else is in the batch.
    energy = target.square().sum(dim=(1, 2)) / lengths.clamp(min=1)
    return (error / energy.clamp(min=torch.finfo(torch.float32).tiny)).sum()
