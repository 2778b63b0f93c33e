"""The sum of taps against torch's convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omnisparse.models.depthwise import causal_depthwise
from omnisparse.models.operations import counted_operations


@pytest.mark.parametrize(("kernel", "frames"), [(1, 4), (4, 4), (15, 40)])
def test_values_and_gradients_are_those_of_the_convolution(kernel: int, frames: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv1d(6, 6, kernel, groups=6)
    inputs = torch.randn(3, frames + kernel - 1, 6, requires_grad=True)
    wanted = convolution(inputs.transpose(1, 2)).transpose(1, 2)
    weight = torch.linspace(-1, 1, wanted.numel()).view_as(wanted)
    sources = inputs, convolution.weight, convolution.bias
    gradients = torch.autograd.grad((wanted * weight).sum(), sources)
    found = causal_depthwise(convolution, inputs)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), sources), gradients)


def test_gradients_in_float64() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv1d(3, 3, 4, groups=3).double()
    inputs = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda frames: causal_depthwise(convolution, frames), inputs)
    torch.testing.assert_close(
        causal_depthwise(convolution, inputs), convolution(inputs.transpose(1, 2)).transpose(1, 2)
    )


def test_operations_are_counted_as_those_of_the_convolution() -> None:
    convolution = nn.Conv1d(6, 6, 4, groups=6)
    inputs = torch.randn(3, 9, 6, requires_grad=True)
    with counted_operations() as plain:
        convolution(inputs.transpose(1, 2))
    with counted_operations() as summed:
        causal_depthwise(convolution, inputs)
    assert summed.total == plain.total > 0
