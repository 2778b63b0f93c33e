"""What an encoder does not keep for its backward pass, and that this changes no bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from omnisparse.models import made_again as made_again_module
from omnisparse.models.dropout import Dropout
from omnisparse.models.lstm import LstmEncoder
from omnisparse.models.made_again import between_layers, made_again

BATCH, FRAMES, WIDTH = 3, 13, 64


def make_encoder(**options: object) -> LstmEncoder:
    torch.manual_seed(0)
    shape = {"input_dim": 24, "num_layers": 3, "dim": WIDTH, "dropout": 0.2, **options}
    return LstmEncoder(**shape)  # type: ignore[arg-type]


def gradients(encoder: LstmEncoder, precision: str) -> list[Tensor]:
    """The outputs and every gradient of one pass, always with the same draws."""
    torch.manual_seed(1)
    features = torch.randn(BATCH, FRAMES, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs, _ = encoder(features, torch.tensor([13, 12, 7]))
    (outputs.float() * torch.randn(outputs.shape)).sum().backward()
    grads = [parameter.grad for parameter in encoder.parameters()]
    encoder.zero_grad(set_to_none=True)
    return [outputs.detach(), *[grad for grad in grads if grad is not None]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"time_reduction": 4},
        {"dropout": 0.0},
        {"layer_norm": False},
        {"layer_norm": False, "dropout": 0.0},
        {"projection": 32},
    ],
    ids=str,
)
def test_no_bit_changes(
    options: dict[str, object], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_products = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if precision == "bf16" and "projection" in options and not has_products:
        pytest.skip("this CPU has no bf16 products")
    encoder = make_encoder(**options)
    expected = gradients(encoder, precision)
    monkeypatch.setattr(made_again_module, "LARGE", 0)
    found = gradients(encoder, precision)
    assert len(found) == len(expected) == 1 + len(list(encoder.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@contextmanager
def kept_storages() -> Iterator[dict[int, Tensor]]:
    """What autograd keeps in the block, each memory once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_inputs_of_layers_are_not_kept(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each value, the output of the layer before and a byte."""
    monkeypatch.setattr(made_again_module, "LARGE", 0)
    layers = [nn.LayerNorm(WIDTH), Dropout(0.2)]
    outputs = torch.randn(FRAMES, BATCH, WIDTH, requires_grad=True)
    outputs = outputs * 1 if precision == "fp32" else outputs.bfloat16()
    with kept_storages() as kept:
        frames, make = between_layers(outputs, layers[0], layers[1], None)  # type: ignore[arg-type]
    assert make is not None
    assert torch.equal(make(), frames)
    assert frames.untyped_storage().data_ptr() not in kept
    of_values = [one for one in kept.values() if one.numel() == outputs.numel()]
    assert sorted(one.element_size() for one in of_values) == [1, outputs.element_size()]


def test_a_tensor_and_its_views_are_made_when_they_are_needed() -> None:
    weight = torch.randn(6, requires_grad=True)
    tensor = torch.randn(4, 6)
    copy, calls = tensor.clone(), []

    def make() -> Tensor:
        calls.append(1)
        return copy

    with made_again(tensor, make):
        total = (tensor * weight).sum() + (tensor[1:, ::2] * weight[::2]).sum()
    tensor.zero_()  # nobody reads it any more
    assert not calls
    total.backward()
    assert len(calls) == 2
    expected = copy.sum(0)
    expected[::2] += copy[1:, ::2].sum(0)
    torch.testing.assert_close(weight.grad, expected)


def test_a_float32_copy_for_the_normalisation_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU autocast normalises in float32."""
    monkeypatch.setattr(made_again_module, "LARGE", 0)
    norm, dropout = nn.LayerNorm(WIDTH), Dropout(0.0)
    leaf = torch.randn(FRAMES, BATCH, WIDTH).bfloat16().requires_grad_()
    expected = norm(leaf.float()).bfloat16()
    (grad,) = torch.autograd.grad(expected.float().square().sum(), leaf)
    monkeypatch.setattr(made_again_module, "_autocast_widens", lambda values: True)
    with kept_storages() as kept:
        frames, make = between_layers(leaf * 1, norm, dropout, None)
    assert make is not None
    assert torch.equal(frames, expected)
    assert torch.equal(make(), expected)
    # The last cast keeps nothing, and the normalisation only what is behind it.
    assert all(one.numel() < leaf.numel() for one in kept.values() if one.dtype is torch.float32)
    assert torch.equal(torch.autograd.grad(frames.float().square().sum(), leaf)[0], grad)


def test_a_subnets_dropout_is_that_of_its_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_again_module, "LARGE", 0)
    dropout = Dropout(0.5)
    outputs = torch.randn(FRAMES, BATCH, WIDTH, requires_grad=True) * 1
    frames, make = between_layers(outputs, nn.LayerNorm(WIDTH), dropout, None)
    dropout.p = 0.1
    assert make is not None
    assert torch.equal(make(), frames)


def test_small_tensors_and_frozen_layers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (nn.Identity(), Dropout(0.5), None)
    outputs = torch.randn(FRAMES, BATCH, WIDTH, requires_grad=True) * 1
    assert between_layers(outputs, *layers)[1] is None
    monkeypatch.setattr(made_again_module, "LARGE", 0)
    assert between_layers(outputs, *layers)[1] is not None
    assert between_layers(outputs.detach(), *layers)[1] is None
    with torch.no_grad():
        assert between_layers(outputs, *layers)[1] is None
