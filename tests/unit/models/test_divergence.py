"""Divergences against their definitions, finite differences, and the data processing inequality."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from omnisparse.models.divergence import (
    adaptive_alpha_divergence,
    alpha_divergence,
    encoder_distance,
    kl_divergence,
)
from omnisparse.models.lattice import collapse

ALPHAS = pytest.mark.parametrize("alpha", [-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
CLIPS = pytest.mark.parametrize("clip", [math.inf, 5.0, 1.5])


def logits(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def definition(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """The formula as printed, and its limit at 1."""
    if alpha == 1:
        return (p * (p / q).log()).sum(-1)
    return (q * ((p / q) ** alpha - 1)).sum(-1) / (alpha * (alpha - 1))


@ALPHAS
def test_without_clipping_it_is_the_definition(alpha: float) -> None:
    teacher, student = logits(6, 7).log_softmax(-1), logits(6, 7, seed=1).log_softmax(-1)
    expected = definition(teacher.exp(), student.exp(), alpha)
    torch.testing.assert_close(alpha_divergence(teacher, student, alpha), expected)


@ALPHAS
@CLIPS
def test_the_gradient_is_that_of_the_value(alpha: float, clip: float) -> None:
    """The surrogate's gradient against central differences of what is reported."""
    teacher = logits(4, 5, scale=2.0).log_softmax(-1)
    scores = logits(4, 5, seed=1, scale=2.0).requires_grad_()

    def value(at: Tensor) -> Tensor:
        return alpha_divergence(teacher, at.log_softmax(-1), alpha, clip=clip).sum()

    value(scores).backward()
    assert scores.grad is not None
    close = {"rel": 1e-5, "abs": 1e-7 * float(scores.grad.abs().max())}
    step = 1e-5
    for row, column in [(r, c) for r in range(4) for c in range(5)]:
        offset = torch.zeros_like(scores)
        offset[row, column] = step
        with torch.no_grad():
            slope = (value(scores + offset) - value(scores - offset)) / (2 * step)
        assert float(scores.grad[row, column]) == pytest.approx(float(slope), **close)


def test_clipping_bites_where_the_nets_disagree() -> None:
    teacher, student = logits(50, 5, scale=4.0), logits(50, 5, seed=1, scale=4.0)
    free = alpha_divergence(teacher.log_softmax(-1), student.log_softmax(-1), -1.0)
    held = alpha_divergence(teacher.log_softmax(-1), student.log_softmax(-1), -1.0, clip=5.0)
    assert (held <= free + 1e-12).all()
    assert float(free.max()) > 100 * float(held.max())


@ALPHAS
@CLIPS
def test_it_is_a_divergence(alpha: float, clip: float) -> None:
    teacher, student = logits(100, 5).log_softmax(-1), logits(100, 5, seed=1).log_softmax(-1)
    assert (alpha_divergence(teacher, student, alpha, clip=clip) > 0).all()
    assert float(alpha_divergence(teacher, teacher, alpha, clip=clip).max()) < 1e-12


@ALPHAS
@pytest.mark.parametrize("scale", [30.0, 1e4])
@pytest.mark.parametrize("clip", [5.0, math.inf])
def test_extreme_logits_give_finite_values_and_gradients(
    alpha: float, scale: float, clip: float
) -> None:
    teacher = (logits(20, 6) * scale).float().log_softmax(-1)
    scores = (logits(20, 6, seed=1) * scale).float().requires_grad_()
    value = alpha_divergence(teacher, scores.log_softmax(-1), alpha, clip=clip)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    if math.isfinite(clip):
        # Per class the weights are within clip * q, so a gradient is too.
        assert float(scores.grad.abs().max()) <= 2 * clip / abs(alpha)


def test_the_adaptive_one_takes_the_larger_with_its_gradient() -> None:
    teacher = logits(30, 5, scale=2.0).log_softmax(-1)
    pairs = []
    for alphas in ((-1.0, 1.0), (-1.0, -1.0), (1.0, 1.0)):
        scores = logits(30, 5, seed=1, scale=2.0).requires_grad_()
        value = adaptive_alpha_divergence(teacher, scores.log_softmax(-1), alphas=alphas, clip=5.0)
        value.sum().backward()
        assert scores.grad is not None
        pairs.append((value.detach(), scores.grad))
    (both, gradient), (low, low_gradient), (high, high_gradient) = pairs
    takes_low = low > high
    assert 0 < int(takes_low.sum()) < 30
    torch.testing.assert_close(both, torch.maximum(low, high))
    expected = torch.where(takes_low[:, None], low_gradient, high_gradient)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("arguments", [(0.0, 5.0), (math.nan, 5.0), (1.0, 0.5)])
def test_illegal_alphas_are_named(arguments: tuple[float, float]) -> None:
    alpha, clip = arguments
    with pytest.raises(ValueError, match=r"alpha is|clip is"):
        alpha_divergence(torch.zeros(1, 2), torch.zeros(1, 2), alpha, clip=clip)


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_a_collapsed_lattice_loses_information_and_never_adds_any(scale: float) -> None:
    """KL over (label, blank, rest) is at most KL over the vocabulary: data processing."""
    teacher = (logits(2, 6, 4, 9) * scale).float()
    student = (logits(2, 6, 4, 9, seed=1) * scale).float()
    labels = torch.tensor([[3, 5, 2, 0], [4, 8, 0, 0]])  # 0 where there is none
    full = kl_divergence(teacher.log_softmax(-1), student.log_softmax(-1))
    small = [collapse(z.clone(), labels, blank=0) for z in (teacher, student)]
    collapsed = kl_divergence(small[0], small[1])
    assert (collapsed <= full * (1 + 1e-4) + 1e-4).all()
    assert float(collapsed.min()) > -1e-5
    assert float((full - collapsed).max()) > 1e-3  # the two are not the same thing
    assert float(kl_divergence(small[0], small[0]).abs().max()) == 0.0
    for alpha in (-1.0, 1.0):
        assert float(alpha_divergence(small[0], small[0], alpha, clip=5.0).abs().max()) < 1e-5


def test_encoder_distance_counts_frames_in_units_of_the_teacher() -> None:
    teacher = logits(3, 7, 4, scale=20.0).float()
    lengths = torch.tensor([5, 2, 4])
    student = teacher[:, :5].clone()
    student[1, 2:] = math.nan  # beyond the length nothing is read
    assert float(encoder_distance(teacher, student, lengths)) == 0.0
    zeros = torch.zeros(3, 5, 4, requires_grad=True)
    distance = encoder_distance(teacher, zeros, lengths)
    assert float(distance.detach()) == pytest.approx(11.0, rel=1e-5)
    distance.backward()
    assert zeros.grad is not None
    assert float(zeros.grad[1, 2:].abs().sum()) == 0.0
    assert float(zeros.grad[1, :2].abs().sum()) > 0.0


def test_encoder_distance_of_a_batch_is_the_sum_of_its_utterances() -> None:
    teacher = logits(3, 5, 4, scale=20.0).float() * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    student = teacher + logits(3, 5, 4, scale=1.0).float()
    lengths = torch.tensor([5, 2, 4])
    alone = [
        encoder_distance(teacher[row : row + 1], student[row : row + 1], lengths[row : row + 1])
        for row in range(3)
    ]
    torch.testing.assert_close(
        encoder_distance(teacher, student, lengths), torch.stack(alone).sum()
    )
