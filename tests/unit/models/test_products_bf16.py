"""Products in bfloat16 on a CPU: rounded numbers of rows, and small LSTMs in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from omnisparse.models import lstm_bf16 as lstm_bf16_module
from omnisparse.models.lstm import make_lstm, run_lstm
from omnisparse.models.products_bf16 import Linear, rounded_rows, with_rounded_rows

# torch's own products and LSTMs in bfloat16 need AVX512; a training on other CPUs is in float32.
needs_products = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 products"
)


@given(st.integers(1, 1 << 20))
def test_few_rows_are_added(rows: int) -> None:
    rounded = rounded_rows(rows)
    assert rows <= rounded <= max(rows + 63, rows * (1 + 1 / 16))
    assert rounded_rows(rounded) == rounded


def test_numbers_of_rows_are_few() -> None:
    """Frames of a batch of speech: hundreds of numbers become a dozen."""
    assert len({rounded_rows(rows) for rows in range(2000, 2800)}) == 7
    assert len({rounded_rows(rows) for rows in range(1, 4097)}) <= 52


def test_added_rows_are_zero() -> None:
    matrix = torch.randn(70, 3)
    rounded = with_rounded_rows(matrix)
    assert rounded.shape == (128, 3)
    assert torch.equal(rounded[:70], matrix)
    assert not rounded[70:].any()
    assert with_rounded_rows(rounded) is rounded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 21, 12), (128, 12), (12,)])
def test_a_linear_layer_and_its_gradients(shape: tuple[int, ...], bias: bool) -> None:
    """Those of torch's own layer under autocast, which rounds the same numbers."""
    layer = Linear(12, 20, bias=bias)
    inputs = torch.randn(shape, requires_grad=True)
    weights = torch.randn(*shape[:-1], 20)
    tensors = [inputs, *layer.parameters()]

    def run(ours: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = layer(inputs) if ours else F.linear(inputs, layer.weight, layer.bias)
        return outputs, torch.autograd.grad((outputs.float() * weights).sum(), tensors)

    (found, grads), (expected, expected_grads) = run(True), run(False)
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    for grad, other in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, other, rtol=0.02, atol=0.02)


def test_float32_is_left_alone() -> None:
    layer, inputs = Linear(12, 20), torch.randn(7, 12)
    assert torch.equal(layer(inputs), F.linear(inputs, layer.weight, layer.bias))


@pytest.mark.parametrize("bias", [True, False])
def test_no_copy_of_frames_is_kept_and_no_bit_changes(bias: bool) -> None:
    """Frames come time first; a product of rows, utterance after utterance, copies them."""
    layer, frames = Linear(40, 24, bias=bias), torch.randn(31, 6, 40, requires_grad=True)
    weights = torch.randn(6, 31, 24)
    kept = []

    def run(ours: bool) -> tuple[torch.Tensor, ...]:
        inputs = frames.transpose(0, 1)
        outputs = layer(inputs) if ours else F.linear(inputs, layer.weight, layer.bias)
        grads = torch.autograd.grad((outputs * weights).sum(), [frames, *layer.parameters()])
        return outputs, *grads

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    expected = run(False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = run(True)
    assert frames.untyped_storage().data_ptr() in kept
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("batch", "in_float32"), [(15, True), pytest.param(16, False, marks=needs_products)]
)
def test_small_layers_are_computed_in_float32(
    batch: int, in_float32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 cells: 2^16 multiplications per utterance and frame. The choice is one of shapes.

    Where no kernel computes the whole layer, which is quicker for all shapes.
    """
    monkeypatch.setattr(lstm_bf16_module, "has_pairs", lambda: False)
    called = []
    true_lstm = torch.lstm

    def lstm(*arguments: object) -> object:
        called.append(arguments)
        return true_lstm(*arguments)

    monkeypatch.setattr(lstm_bf16_module.torch, "lstm", lstm)
    layer, inputs = make_lstm(10, 128), torch.randn(40, batch, 10)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, (hidden, cell) = run_lstm(layer, inputs)
    assert bool(called) == in_float32
    assert (outputs.dtype, hidden.dtype) == (torch.bfloat16, torch.bfloat16)
    assert cell.dtype == torch.float32
    expected, _ = run_lstm(layer, inputs)
    torch.testing.assert_close(outputs.float(), expected, rtol=0.02, atol=0.01)
