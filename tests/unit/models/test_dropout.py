"""Dropout in bfloat16 draws what `nn.Dropout` would, from fewer random numbers."""

from __future__ import annotations

import pytest
import torch

from omnisparse.models.dropout import Dropout


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


def test_float32_is_torchs_own() -> None:
    values = torch.randn(7, 9)
    torch.manual_seed(5)
    found = Dropout(0.3)(values)
    torch.manual_seed(5)
    assert torch.equal(found, torch.nn.Dropout(0.3)(values))
