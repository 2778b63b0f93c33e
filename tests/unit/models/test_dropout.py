"""Dropout is `nn.Dropout` with a smaller mask; in bfloat16 it draws from fewer random numbers."""

from __future__ import annotations

import pytest
import torch

from omnisparse.models import dropout as dropout_module
from omnisparse.models.dropout import Dropout, dropped_again


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_scale_and_gradient(probability: float) -> None:
    torch.manual_seed(0)
    values = torch.full((501, 201), 2.0, dtype=torch.bfloat16, requires_grad=True)
    found = Dropout(probability)(values)
    kept = found != 0
    assert float(kept.float().mean()) == pytest.approx(1 - probability, abs=0.005)
    scaled = torch.tensor(2.0 / (1 - probability)).bfloat16()
    assert torch.equal(found[kept].unique(), scaled[None])
    found.backward(torch.ones_like(found))
    assert torch.equal(values.grad != 0, kept)
    # Neighbours share a draw, but not their fate.
    pairs = kept[:, :-1].float() * kept[:, 1:].float()
    assert float(pairs.mean()) == pytest.approx((1 - probability) ** 2, abs=0.01)


def test_the_seed_decides_and_evaluation_changes_nothing() -> None:
    layer, values = Dropout(0.3), torch.randn(7, 9).bfloat16()
    torch.manual_seed(5)
    first = layer(values)
    torch.manual_seed(5)
    assert torch.equal(layer(values), first)
    assert not torch.equal(layer(values), first)
    assert torch.equal(layer.eval()(values), values)


@pytest.mark.parametrize("large", [0, dropout_module.LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("probability", [0.1, 0.3, 0.77])
def test_other_dtypes_have_torchs_own_bits(
    probability: float, dtype: torch.dtype, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout_module, "LARGE", large)
    found, expected = (outcome(layer(probability), dtype) for layer in (Dropout, torch.nn.Dropout))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))  # signs of zeros, too


def outcome(layer: torch.nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Values and gradient of an input that is not contiguous, and the next random number."""
    torch.manual_seed(5)
    values = torch.randn(9, 7, 33, dtype=dtype).transpose(0, 1).requires_grad_()
    dropped = layer(values)
    (grad,) = torch.autograd.grad(dropped, values, torch.randn(7, 9, 33, dtype=dtype))
    return dropped.detach().contiguous(), grad.contiguous(), torch.rand(1)


def test_a_mask_makes_the_same_again() -> None:
    values = torch.randn(7, 9, requires_grad=True)
    for given in (values, values.bfloat16()):
        dropped, kept = Dropout(0.3).with_kept(given)
        assert kept is not None
        assert kept.element_size() == 1
        assert torch.equal(dropped_again(given, kept, 0.3), dropped)
    assert Dropout(0.0).with_kept(values)[1] is None
    assert Dropout(0.3).eval().with_kept(values)[1] is None
