"""Losses and lattices against oracles that spell them out."""

from __future__ import annotations

import itertools

import pytest
import torch
from small_models import VOCAB_SIZE, Utterances, small_model
from torch import Tensor
from torch.nn import functional as F

from omnisparse.models import lattice as lattice_module
from omnisparse.models import lattice_bf16
from omnisparse.models.bf16_kernels import kernels
from omnisparse.models.lattice import collapse, join_lattice
from omnisparse.models.lattice_bf16 import join_lattice_bf16
from omnisparse.models.losses import (
    LOG_ZERO,
    label_smoothed_cross_entropy,
    lattice_weights,
    length_mask,
    transducer_loss,
)

FRAMES, TOKENS, JOINER = 4, 3, 5

needs_kernels = pytest.mark.skipif(kernels() is None, reason="the kernels were not built")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing_equals_torch(smoothing: float) -> None:
    logits = torch.randn(3, 5, VOCAB_SIZE)
    targets = torch.randint(0, VOCAB_SIZE, (3, 5))
    mask = length_mask(torch.tensor([5, 0, 2]), 5)
    expected = F.cross_entropy(
        logits[mask], targets[mask], label_smoothing=smoothing, reduction="sum"
    )
    actual = label_smoothed_cross_entropy(
        logits.log_softmax(-1), targets, mask, smoothing=smoothing
    )
    torch.testing.assert_close(actual, expected)


class Joint:
    """Random joiner inputs in float64, and the lattice written out with plain autograd."""

    def __init__(self, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            return drawn.mul_(scale).requires_grad_()

        self.inputs = (
            draw(3, FRAMES, JOINER),
            draw(3, TOKENS + 1, JOINER),
            draw(VOCAB_SIZE, JOINER),
            draw(VOCAB_SIZE),
        )
        self.tokens = torch.tensor([[2, 5, 2], [8, 0, 0], [0, 0, 0]])
        self.token_lengths = torch.tensor([3, 1, 0])
        self.frame_lengths = torch.tensor([3, 4, 1])

    def logits(self) -> Tensor:
        encoded, predicted, weight, bias = self.inputs
        return F.linear((encoded[:, :, None] + predicted[:, None]).tanh(), weight, bias)

    def reference(self) -> Tensor:
        """``[B, T, N, 3]`` from sums of the full softmax; zero for a missing label."""
        probabilities = self.logits().softmax(-1)
        padded = F.pad(self.tokens, (0, 1))
        index = padded[:, None, :, None].expand(-1, FRAMES, -1, 1)
        label = probabilities.gather(-1, index).squeeze(-1)
        has_label = length_mask(self.token_lengths, TOKENS + 1)[:, None]
        label = torch.where(has_label, label, torch.zeros_like(label))
        blank = probabilities[..., 0]
        return torch.stack([label, blank, 1.0 - label - blank], dim=-1)

    def lattice(self) -> Tensor:
        encoded, predicted, weight, bias = (tensor.float() for tensor in self.inputs)
        return join_lattice(
            encoded,
            predicted,
            weight,
            bias,
            tokens=self.tokens,
            frame_lengths=self.frame_lengths,
            token_lengths=self.token_lengths,
        )

    def valid(self) -> Tensor:
        frames = length_mask(self.frame_lengths, FRAMES)
        return frames[:, :, None] & length_mask(self.token_lengths + 1, TOKENS + 1)[:, None]


@pytest.mark.parametrize("limit", [1, 10**9])
def test_lattice_equals_the_full_softmax(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lattice_module.CHUNK_ELEMENTS, "cpu", limit)
    joint = Joint()
    actual, expected, valid = joint.lattice(), joint.reference().float(), joint.valid()
    torch.testing.assert_close(actual.exp()[valid], expected[valid])
    torch.testing.assert_close(actual.exp().sum(-1), torch.ones(3, FRAMES, TOKENS + 1))

    weights = torch.rand(3, FRAMES, TOKENS + 1, 3) * valid[..., None]
    (actual.exp() * weights).sum().backward()
    gradients = [tensor.grad.clone() for tensor in joint.inputs]
    for tensor in joint.inputs:
        tensor.grad = None
    (joint.reference() * weights).sum().backward()
    for gradient, tensor in zip(gradients, joint.inputs, strict=True):
        torch.testing.assert_close(gradient, tensor.grad, rtol=1e-4, atol=1e-5)


def test_no_label_at_the_end_of_an_utterance() -> None:
    joint = Joint()
    lattice = joint.lattice()
    for utterance, length in enumerate(joint.token_lengths.tolist()):
        assert (lattice[utterance, 0, length, 0] == LOG_ZERO).all()
        assert (lattice[utterance, 0, :length, 0] > LOG_ZERO).all()


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_extreme_logits_stay_finite(scale: float) -> None:
    joint = Joint(scale)
    lattice = joint.lattice()
    assert torch.isfinite(lattice).all()
    assert (lattice <= 0).all()
    assert (lattice >= LOG_ZERO).all()
    loss, _ = transducer_loss(lattice, joint.frame_lengths, joint.token_lengths)
    divergence = (lattice.exp() * (lattice - lattice.detach().roll(1, 0))).sum()
    (loss + divergence).backward()
    assert torch.isfinite(loss)
    for tensor in joint.inputs:
        assert torch.isfinite(tensor.grad).all()


def test_a_tiny_rest_keeps_its_digits() -> None:
    logits = torch.tensor([0.0, -40.0, -45.0, 1.0]).view(1, 1, 1, 4)
    expected = logits.log_softmax(-1).flatten()
    lattice = collapse(logits.clone(), torch.tensor([[3]]), blank=0).flatten()
    torch.testing.assert_close(lattice[0], expected[3])
    torch.testing.assert_close(lattice[1], expected[0])
    torch.testing.assert_close(lattice[2], expected[1:3].logsumexp(0))


def all_alignments(lattice: Tensor, frames: int, tokens: int) -> Tensor:
    """-log of the summed probability of every path, enumerated (Graves 2012, eq. 1)."""
    paths = []
    # A path places each token in a frame; the last step is the blank of the last frame.
    for places in itertools.combinations_with_replacement(range(frames), tokens):
        score = lattice.new_zeros(())
        for index, frame in enumerate(places):
            score = score + lattice[frame, index, 0]
        for frame in range(frames):
            score = score + lattice[frame, sum(place <= frame for place in places), 1]
        paths.append(score)
    return -torch.stack(paths).logsumexp(0)


def test_transducer_loss_equals_enumerated_paths() -> None:
    joint = Joint()
    lattice = joint.lattice()
    loss, _ = transducer_loss(lattice, joint.frame_lengths, joint.token_lengths)
    expected = sum(
        all_alignments(lattice[row], int(joint.frame_lengths[row]), int(joint.token_lengths[row]))
        for row in range(3)
    )
    torch.testing.assert_close(loss, expected)

    gradients = torch.autograd.grad(loss, joint.inputs, retain_graph=True)
    oracle = torch.autograd.grad(expected, joint.inputs)
    for gradient, reference in zip(gradients, oracle, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


def test_transducer_loss_equals_torchaudio_on_full_logits() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    joint = Joint()
    expected = torchaudio.functional.rnnt_loss(
        joint.logits().float(),
        joint.tokens.int(),
        joint.frame_lengths.int(),
        joint.token_lengths.int(),
        blank=0,
        reduction="sum",
    )
    actual, _ = transducer_loss(joint.lattice(), joint.frame_lengths, joint.token_lengths)
    torch.testing.assert_close(actual, expected)


def test_a_batch_without_any_token(batch: Utterances) -> None:
    for name in ("las", "transducer"):
        output = small_model(name)(
            batch.features,
            batch.feature_lengths,
            batch.tokens[:, :0],
            torch.zeros_like(batch.token_lengths),
        )
        output.label_loss_sum.backward()
        assert torch.isfinite(output.label_loss_sum)
        assert output.num_units.item() == 5


def test_distillation_of_equal_lattices_is_zero() -> None:
    joint = Joint()
    student, teacher = joint.lattice(), joint.lattice().detach()
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    weights = lattice_weights(joint.frame_lengths, joint.token_lengths, student)
    loss = (divergence * weights).sum()
    loss.backward()
    assert loss.item() == 0.0
    for tensor in joint.inputs:
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor), rtol=0, atol=1e-6)


def test_collapsed_divergence_is_at_most_the_full_one() -> None:
    """Data-processing inequality."""
    teacher, student = Joint(), Joint(0.5)
    valid = teacher.valid()
    full = F.kl_div(
        student.logits().log_softmax(-1),
        teacher.logits().log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    collapsed = (teacher.lattice().exp() * (teacher.lattice() - student.lattice())).sum(-1)
    assert (collapsed[valid] >= -1e-6).all()
    assert (collapsed[valid] <= full[valid] + 1e-6).all()


def test_weights_sum_to_the_frames_of_an_utterance() -> None:
    joint = Joint()
    weights = lattice_weights(joint.frame_lengths, joint.token_lengths, joint.lattice())
    torch.testing.assert_close(weights.sum((1, 2)), joint.frame_lengths.float())
    assert ((weights > 0) == joint.valid()).all()


def occupancy_by_recursion(lattice: Tensor, frames: int, tokens: int) -> Tensor:
    """Of one utterance, in float64: eqs. 16-18 of Graves 2012, node by node."""
    label, blank = (lattice[..., index].double() for index in (0, 1))
    alpha = torch.full((frames, tokens + 1), -torch.inf, dtype=torch.float64)
    beta = alpha.clone()
    for t in range(frames):
        for u in range(tokens + 1):
            ways = [alpha[t - 1, u] + blank[t - 1, u]] if t else []
            ways += [alpha[t, u - 1] + label[t, u - 1]] if u else []
            alpha[t, u] = torch.stack(ways).logsumexp(0) if ways else 0.0
    for t in reversed(range(frames)):
        for u in reversed(range(tokens + 1)):
            ways = [beta[t + 1, u] + blank[t, u]] if t + 1 < frames else []
            ways += [beta[t, u + 1] + label[t, u]] if u < tokens else []
            beta[t, u] = torch.stack(ways).logsumexp(0) if ways else blank[t, u]
    return (alpha + beta - beta[0, 0]).exp().float()


def test_occupancy_is_that_of_all_alignments() -> None:
    frames, tokens = torch.tensor([6, 3, 1, 4]), torch.tensor([3, 2, 0, 3])
    lattice = (2 * torch.randn(4, 6, 4, 3)).log_softmax(-1)
    for row, length in enumerate(tokens):
        lattice[row, :, length:, 0] = LOG_ZERO
    lattice.requires_grad_()
    _, occupancy = transducer_loss(lattice, frames, tokens)
    assert not occupancy.requires_grad
    expected = torch.zeros(4, 6, 4)
    for row, (length, labels) in enumerate(zip(frames.tolist(), tokens.tolist(), strict=True)):
        one = occupancy_by_recursion(lattice[row].detach(), length, labels)
        expected[row, :length, : labels + 1] = one
    torch.testing.assert_close(occupancy, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(occupancy.sum((1, 2)), (frames + tokens).float())


def test_occupancy_of_a_long_unlikely_utterance_is_finite() -> None:
    lattice = torch.full((1, 3000, 200, 3), -12.0)
    _, occupancy = transducer_loss(lattice, torch.tensor([3000]), torch.tensor([199]))
    assert float(occupancy.sum()) == pytest.approx(3199, rel=0.02)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_lattice_in_bfloat16_has_float32_sums(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products are bfloat16; the compiled kernel and torch's passes agree with float32."""
    if not compiled:
        monkeypatch.setattr(lattice_module, "kernels", lambda: None)
    joint = Joint()
    encoded, predicted, weight, bias = (
        tensor.detach().bfloat16().requires_grad_() for tensor in joint.inputs
    )
    lengths = {"frame_lengths": joint.frame_lengths, "token_lengths": joint.token_lengths}
    lattice = join_lattice(encoded, predicted, weight, bias, tokens=joint.tokens, **lengths)
    assert lattice.dtype == torch.float32
    valid = joint.valid()
    torch.testing.assert_close(
        lattice.exp()[valid], joint.reference().float()[valid], rtol=0.05, atol=0.01
    )
    loss, _ = transducer_loss(lattice, **lengths)
    loss.backward()
    exact, _ = transducer_loss(joint.lattice(), **lengths)
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    for found, expected in zip((encoded, predicted, weight, bias), joint.inputs, strict=True):
        difference = found.grad.float() - expected.grad
        assert float(difference.norm() / expected.grad.norm()) < 0.02


@needs_kernels
@pytest.mark.parametrize("vocab", [3, 16, 37])
def test_the_compiled_lattice_is_that_of_its_logits(vocab: int) -> None:
    """To float32's last digits: value by value, and the gradients that torch derives."""
    batch, frames, nodes, dim = 2, 5, 4, 24
    sides = torch.randn(batch, frames, dim).bfloat16(), torch.randn(batch, nodes, dim).bfloat16()
    weight, bias = (3 * torch.randn(vocab, dim)).bfloat16(), torch.randn(vocab).bfloat16()
    labels = torch.randint(1, vocab, (batch, nodes))
    labels[0, 2:] = labels[1, 3] = 0
    chunks = [(slice(0, 1), 4, 3), (slice(1, 2), 5, 4)]
    library = kernels()
    assert library is not None
    inputs = [tensor.clone().requires_grad_() for tensor in (*sides, weight, bias)]
    lattice = join_lattice_bf16(library, *inputs, labels, chunks, 0)
    hidden = (sides[0].float()[:, :, None] + sides[1].float()[:, None]).tanh().bfloat16()
    logits = F.linear(hidden, weight, bias).float().requires_grad_()
    scores = logits.log_softmax(-1)
    index = labels[:, None, :, None].expand(batch, frames, nodes, 1)
    others = torch.ones_like(logits, dtype=torch.bool).scatter(-1, index, False)
    others[..., 0] = False
    rest = scores.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True)
    label = scores.gather(-1, index)
    expected = torch.cat([label.masked_fill(index == 0, LOG_ZERO), scores[..., :1], rest], -1)
    factors = torch.randn(lattice.shape)
    grads = torch.zeros_like(lattice)
    for rows, length, width in chunks:
        here = (rows, slice(length), slice(width))
        torch.testing.assert_close(lattice[here], expected[here], rtol=1e-6, atol=2e-5)
        grads[here] = factors[here]
    lattice.backward(factors)
    expected.backward(grads)
    at_logits = logits.grad
    assert at_logits is not None
    expected_bias = at_logits.sum((0, 1, 2))
    torch.testing.assert_close(inputs[3].grad.float(), expected_bias, rtol=0.01, atol=0.02)
    expected_weight = at_logits.flatten(0, 2).t() @ hidden.float().flatten(0, 2)
    at_sides = (at_logits @ weight.float()) * (1 - hidden.float() ** 2)
    wanted = (at_sides.sum(2), at_sides.sum(1), expected_weight)
    for found, exact in zip(inputs, wanted, strict=False):
        assert float((found.grad.float() - exact).norm() / exact.norm()) < 0.01


@needs_kernels
def test_what_is_no_number_stays_none_in_the_compiled_lattice() -> None:
    """A skipped step depends on it: rounding to bfloat16 must not make a number of it."""
    sides = [torch.zeros(1, 2, 16, dtype=torch.bfloat16) for _ in range(2)]
    sides[0][0, 1, 3] = float("nan")
    weight, bias = torch.ones(5, 16).bfloat16(), torch.zeros(5).bfloat16()
    inputs = [tensor.requires_grad_() for tensor in (*sides, weight, bias)]
    labels = torch.tensor([[1, 0]])
    chunks = [(slice(0, 1), 2, 2)]
    library = kernels()
    assert library is not None
    lattice = join_lattice_bf16(library, *inputs, labels, chunks, 0)
    assert torch.isnan(lattice[0, 1]).all()
    assert torch.isfinite(lattice[0, 0]).all()
    lattice[..., 1].sum().backward()
    assert torch.isnan(inputs[2].grad).any()


@needs_kernels
@pytest.mark.parametrize(("left", "right"), [(60.0, 60.0), (-60.0, -60.0), (30.0, -30.0)])
def test_large_summands_of_the_quick_tanh(left: float, right: float) -> None:
    sides = (torch.full((1, 2, 4), value, dtype=torch.bfloat16) for value in (left, right))
    library = kernels()
    assert library is not None
    nodes = lattice_bf16._Nodes(library, *sides, torch.zeros(1, 2, dtype=torch.int64))
    hidden, shape = nodes.hidden(slice(0, 1), 2, 2)
    assert shape == (1, 2, 2, 4)
    assert torch.equal(hidden[:4], torch.full((4, 4), left + right).tanh().bfloat16())
    assert not hidden[4:].any()  # rows that only fill up
