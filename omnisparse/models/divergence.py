"""Divergence of a student's outputs from its teacher's, position by position.

Everything here computes in float32 from log-probabilities, so that the logarithm of a probability
that underflowed to zero is never taken.

Legend: B batch, T' encoder frames, D width, K classes of a posterior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omnisparse.models.losses import LOG_ZERO, length_mask

_LARGEST_EXPONENT = 40.0
"""Limit of a weight without a clip: the tangent's slope, at most its square, fits a float32."""


def kl_divergence(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    """``KL(teacher || student)`` of every position.

    Args:
        teacher_log: ``[..., K]`` log-probabilities, detached.
        student_log: ``[..., K]`` log-probabilities.

    Returns:
        ``[...]`` float32 (float64 for float64 inputs), in nats.
    """
    teacher_log, student_log = _wide(teacher_log), _wide(student_log)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1)


def alpha_divergence(
    teacher_log: Tensor, student_log: Tensor, alpha: float, *, clip: float = math.inf
) -> Tensor:
    """The alpha-divergence of every position, with clipped importance weights.

    With teacher p, student q and ratio r = p / q it is ``D = sum_k q_k f(r_k)``, where ``f(r) =
    (r^alpha - 1) / (alpha (alpha - 1))``; alpha = 1 is the limit KL(p || q). Because ``sum q
    d(log q) = 0``, its gradient is ``-1 / alpha * sum q r^alpha d(log q)``: the score of each
    class weighted by ``r^alpha``. This weight grows without bound where the two disagree. Limiting
    it to ``clip`` is the same as replacing f by its tangent beyond the ratio where the limit is
    reached. So f stays convex and the clipped loss is also a divergence: never negative, and
    finite for any logits. The gradient computed here is exactly the gradient of this loss.

    Args:
        teacher_log: ``[..., K]`` log-probabilities, detached.
        student_log: ``[..., K]`` log-probabilities with rows that sum to one.
        alpha: Any finite number but 0. Above 1, a student is penalised most where it gives a low
            probability to what the teacher finds likely; below 0, where it gives a high
            probability to what the teacher finds unlikely.
        clip: Largest weight of a class, at least 1.

    Returns:
        ``[...]`` float32 (float64 for float64 inputs), at least 0.

    Raises:
        ValueError: If ``alpha`` is 0 or not finite, or ``clip`` is below 1.

    Source: Minka 2005 for the divergence; Wang et al. 2021 (AlphaNet, arXiv:2102.07954) for its
    use in a supernet and for clipping. The surrogate and its tangent are derived here.
    Deviation: the weights of alpha = 1 are clipped like all others.
    """
    if not math.isfinite(alpha) or alpha == 0:
        raise ValueError(f"alpha is {alpha}; it must be a finite number other than 0")
    if not clip >= 1:
        raise ValueError(f"clip is {clip}; it must be at least 1")
    # Every probability of zero becomes LOG_ZERO, so that differences of two stay finite.
    teacher_log = _wide(teacher_log).detach().clamp(min=LOG_ZERO)
    student_log = _wide(student_log).clamp(min=LOG_ZERO)
    fixed = student_log.detach()
    limit = min(math.log(clip), _LARGEST_EXPONENT * min(1.0, abs(alpha)))
    log_weight = alpha * (teacher_log - fixed)
    # q r^alpha is one exponential, because q may be 0 where r is infinite.
    weight = (fixed + log_weight.clamp(max=limit)).exp()
    surrogate = -(weight * student_log).sum(-1) / alpha
    p, q = teacher_log.exp(), fixed.exp()
    if alpha == 1:
        within = p * (teacher_log - fixed) - p + q
    else:  # the term linear in r sums to 0 and makes the summand of every class positive
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

    A negative alpha penalises a student that gives probability to classes which the teacher rules
    out. A positive alpha penalises a student that gives little probability to classes which the
    teacher finds likely. The larger of the two prevents both errors.

    Args:
        teacher_log: ``[..., K]`` log-probabilities, detached.
        student_log: ``[..., K]`` log-probabilities.
        alphas: The two values.
        clip: Largest importance weight, at least 1.

    Returns:
        ``[...]`` float32 (float64 for float64 inputs); the gradient is that of the larger one.

    Source: Wang et al. 2021 (arXiv:2102.07954): ``max(D_alpha-, D_alpha+)``.
    Choice: the maximum is taken at each position (node of a lattice, token), not over sums.
    """
    low, high = (alpha_divergence(teacher_log, student_log, a, clip=clip) for a in alphas)
    return torch.maximum(low, high)


def encoder_distance(teacher: Tensor, student: Tensor, lengths: Tensor) -> Tensor:
    """Squared error of a student's encoder, relative to the teacher's energy in each utterance.

    Args:
        teacher: ``[B, T', D]``, detached; may be padded further than the student's.
        student: ``[B, T', D]``.
        lengths: ``[B]`` int64 frames of each utterance.

    Returns:
        Scalar float32, summed over frames: 0 for equal encoders, 1 per frame for a student that
        outputs zeros, for any scale and width of the encoder.

    Source: Tian et al. 2021 (CoDERT, arXiv:2106.07734) for in-place distillation of a transducer's
    encoder. Deviation: they match logits of an output layer on the encoder; here the outputs that
    the joiner or the attention reads are matched directly, without a further layer.
    """
    lengths = lengths.to(student.device, non_blocking=True)
    mask = length_mask(lengths, student.size(1))[..., None]
    target = teacher[:, : student.size(1)].detach().float().masked_fill(~mask, 0.0)
    error = (student.float() - target).masked_fill(~mask, 0.0).square().sum(dim=(1, 2))
    # Computed per utterance: its loss must not depend on the other utterances of the batch.
    energy = target.square().sum(dim=(1, 2)) / lengths.clamp(min=1)
    return (error / energy.clamp(min=torch.finfo(torch.float32).tiny)).sum()
