"""Single steps against sequences, and the layers' initial values."""

from __future__ import annotations

import pytest
import torch

from omnisparse.models import lstm_bf16 as lstm_bf16_module
from omnisparse.models.bf16_kernels import has_pairs, kernels
from omnisparse.models.lstm import (
    lstm_step,
    make_lstm,
    num_reductions,
    run_lstm,
    zero_state,
)

# torch's own products and LSTMs in bfloat16 need AVX512; a training on other CPUs is in float32.
HAS_PRODUCTS = torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_products = pytest.mark.skipif(not HAS_PRODUCTS, reason="this CPU has no bf16 products")


@pytest.mark.parametrize("projection", [None, 3])
def test_steps_equal_the_sequence(projection: int | None) -> None:
    layer = make_lstm(4, 6, projection)
    inputs = torch.randn(7, 2, 4)
    outputs, (hidden, cell) = run_lstm(layer, inputs)
    state = zero_state(layer, 2)
    for time, frame in enumerate(inputs):
        output, state = lstm_step(layer, frame, state)
        torch.testing.assert_close(output, outputs[time])
    torch.testing.assert_close(state[0], hidden)
    torch.testing.assert_close(state[1], cell)


@pytest.mark.parametrize("projection", [None, pytest.param(3, marks=needs_products)])
def test_autocast_reaches_it_in_bfloat16(projection: int | None) -> None:
    """Not fp16, which torch's autocast of cuDNN's LSTM casts to; and the cell is float32."""
    layer = make_lstm(4, 6, projection)
    inputs = torch.randn(7, 2, 4)
    expected, (_, last) = run_lstm(layer, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, (hidden, cell) = run_lstm(layer, inputs)
        begun, state = run_lstm(layer, inputs[:3])
        ended, _ = run_lstm(layer, inputs[3:], state)
    assert outputs.dtype == hidden.dtype == torch.bfloat16
    assert cell.dtype == torch.float32
    torch.testing.assert_close(outputs.float(), expected, rtol=0.02, atol=0.01)
    torch.testing.assert_close(cell, last, rtol=0.02, atol=0.01)
    torch.testing.assert_close(torch.cat([begun, ended]), outputs, rtol=0.01, atol=0.01)


@pytest.fixture(
    params=["compiled", "few frames", "fused", "float32"] if kernels() else ["fused", "float32"]
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a layer is computed in bfloat16 on a CPU; weights do not depend on the tests before."""
    if request.param != "float32" and not HAS_PRODUCTS:
        pytest.skip("this CPU has no bf16 products")
    torch.manual_seed(0)
    monkeypatch.setattr(lstm_bf16_module, "_SMALL", (1 << 20) if request.param == "float32" else 0)
    monkeypatch.setattr(lstm_bf16_module, "_FEW_FRAMES", 99 * (request.param == "few frames"))
    if request.param in ("fused", "float32"):
        monkeypatch.setattr(lstm_bf16_module, "kernels", lambda: None)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("projection", [None, 3])
def test_a_cell_that_fills_slowly_in_bfloat16(projection: int | None) -> None:
    """A cell in bfloat16 stands still at 0.5, where each addition is less than half its grain."""
    layer = make_lstm(4, 6, projection)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for gate, value in enumerate((-6.0, 20.0, 1.0, 20.0)):
            layer.bias_ih_l0[6 * gate : 6 * gate + 6] = value
    inputs = torch.zeros(400, 2, 4)
    _, (_, expected) = run_lstm(layer, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        _, (_, cell) = run_lstm(layer, inputs)
    assert expected[0, 0].item() > 0.7
    torch.testing.assert_close(cell, expected, rtol=0.01, atol=0.0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("projection", [None, 3])
def test_gradients_in_bfloat16(projection: int | None) -> None:
    """Those of float32 weights, whatever computes the layer."""
    layer = make_lstm(4, 6, projection)
    inputs = torch.randn(9, 3, 4, requires_grad=True)
    weights = torch.randn(9, 3, projection or 6)

    def gradients() -> list[torch.Tensor]:
        tensors = [inputs, *layer.parameters()]
        outputs, _ = run_lstm(layer, inputs)
        return list(torch.autograd.grad((outputs.float() * weights).sum(), tensors))

    expected = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


@pytest.mark.usefixtures("way")
def test_a_layer_goes_on_from_its_state_in_bfloat16() -> None:
    layer = make_lstm(4, 6)
    inputs = torch.randn(9, 3, 4)
    state = torch.randn(3, 6).clamp(-0.9, 0.9), torch.randn(3, 6)
    expected, (_, last) = run_lstm(layer, inputs, state)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, (_, found) = run_lstm(layer, inputs, state)
    torch.testing.assert_close(outputs.float(), expected, rtol=0.02, atol=0.01)
    torch.testing.assert_close(found, last, rtol=0.02, atol=0.01)


needs_kernels = pytest.mark.skipif(kernels() is None, reason="the kernels were not built")


@needs_kernels
@pytest.mark.parametrize("cells", [1, 16, 37])
def test_compiled_gates_are_those_of_the_equations(cells: int) -> None:
    """Forward and backward of one frame against torch's derivatives, in float32."""
    rows = 3
    library = kernels()
    assert library is not None
    sums = (3 * torch.randn(rows, 4, cells)).bfloat16()
    before, arrived = torch.randn(rows, cells), torch.randn(rows, cells).bfloat16()
    reached = torch.randn(rows, cells)
    exact, level = sums.float().requires_grad_(), before.clone().requires_grad_()
    admit, forget, candidate, emit = exact.unbind(1)
    cell = forget.sigmoid() * level + admit.sigmoid() * candidate.tanh()
    emitted = emit.sigmoid() * cell.tanh()
    after, output = torch.empty(rows, cells), torch.empty(rows, cells, dtype=torch.bfloat16)
    library.omni_lstm_forward(rows, cells, *(t.data_ptr() for t in (sums, before, after, output)))
    torch.testing.assert_close(after, cell, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output.float(), emitted, rtol=0.004, atol=1e-6)
    torch.autograd.backward([cell, emitted], [reached, arrived.float()])
    cell_grad, sums_grad, again = reached.clone(), torch.empty_like(sums), torch.empty_like(output)
    given = (sums, before, after, arrived, cell_grad, sums_grad, again)
    library.omni_lstm_backward(rows, cells, *(t.data_ptr() for t in given))
    torch.testing.assert_close(cell_grad, level.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums_grad.float(), exact.grad, rtol=0.004, atol=1e-5)
    assert torch.equal(again, output)


@needs_kernels
def test_extreme_gates_and_no_number_in_the_compiled_kernel() -> None:
    values = [0.0, -0.0, 1e-30, 50.0, -50.0, 1e30, -1e30, float("inf"), float("nan")]
    cells = len(values)
    library = kernels()
    assert library is not None
    sums = torch.tensor(values).repeat(4, 1).bfloat16()
    before = torch.linspace(-2, 2, cells)
    after, output = torch.empty(cells), torch.empty(cells, dtype=torch.bfloat16)
    library.omni_lstm_forward(1, cells, *(t.data_ptr() for t in (sums, before, after, output)))
    gates = sums.float()
    cell = gates[1].sigmoid() * before + gates[0].sigmoid() * gates[2].tanh()
    torch.testing.assert_close(after, cell, rtol=1e-6, atol=1e-6, equal_nan=True)
    expected = (gates[3].sigmoid() * cell.tanh()).bfloat16()
    torch.testing.assert_close(output, expected, rtol=0.01, atol=1e-6, equal_nan=True)


@pytest.mark.skipif(not has_pairs(), reason="no AVX512_BF16, or no kernels")
@pytest.mark.parametrize("batch", [1, 5, 7, 12])
@pytest.mark.parametrize("length", [1, 9])
def test_a_whole_layer_in_one_call_is_the_same_layer(
    batch: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with oneDNN's products, and bit by bit the same on two threads."""
    torch.manual_seed(0)
    layer = make_lstm(4, 128)
    given = [
        torch.randn(length, batch, 4),
        *(torch.randn(batch, 128).clamp(-0.9, 0.9) for _ in "hc"),
    ]
    weights = torch.randn(length, batch, 128)

    def results() -> list[torch.Tensor]:
        inputs, hidden, cell = tensors = [one.clone().requires_grad_() for one in given]
        with torch.autocast("cpu", torch.bfloat16):
            outputs, (_, last) = run_lstm(layer, inputs, (hidden, cell))
        total = (outputs.float() * weights).sum()
        return [
            outputs.detach(),
            last,
            *torch.autograd.grad(total, [*tensors, *layer.parameters()]),
        ]

    monkeypatch.setattr(lstm_bf16_module, "has_tiles", lambda: False)
    found = results()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        on_two = results()
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(lstm_bf16_module, "has_pairs", lambda: False)
    monkeypatch.setattr(lstm_bf16_module, "_SMALL", 0)
    monkeypatch.setattr(lstm_bf16_module, "_FEW_FRAMES", 0)
    expected = results()
    for one, two, other in zip(found, on_two, expected, strict=True):
        assert torch.equal(one, two)
        assert float((one.float() - other.float()).norm() / other.float().norm()) < 0.01


@pytest.mark.skipif(not has_pairs(), reason="no AVX512_BF16, or no kernels")
@pytest.mark.parametrize(
    ("tiles", "batch", "cells", "whole"),
    [(False, 32, 256, True), (True, 32, 256, False), (True, 7, 256, True), (True, 4, 512, True)],
)
def test_tiles_multiply_for_many_utterances_and_large_layers_only(
    tiles: bool, batch: int, cells: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lstm_bf16_module, "has_tiles", lambda: tiles)
    layer, inputs = make_lstm(4, cells), torch.randn(40, batch, 4)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = run_lstm(layer, inputs)
    found = []
    reached = outputs.grad_fn
    while reached is not None and len(found) < 10:
        found.append(reached.name())
        reached = reached.next_functions[0][0] if reached.next_functions else None
    assert ("_WholeLayerBackward" in found) == whole


def test_forget_gate_starts_open() -> None:
    layer = make_lstm(4, 6)
    total = layer.bias_ih_l0 + layer.bias_hh_l0
    expected = torch.zeros(24)
    expected[6:12] = 1.0
    assert torch.equal(total, expected)


def test_lstmp_parameter_count() -> None:
    cells, width, inputs = 1400, 256, 240
    layer = make_lstm(inputs, cells, width)
    expected = 4 * cells * (inputs + width) + cells * width + 8 * cells
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
def test_lstmp_is_eqs_6_to_11_and_torchs_own() -> None:
    layer = make_lstm(4, 6, 3)
    reference = torch.nn.LSTM(4, 6, proj_size=3)
    count, expected = (sum(p.numel() for p in net.parameters()) for net in (layer, reference))
    assert count == expected
    reference.load_state_dict(layer.state_dict())
    inputs = torch.randn(5, 2, 4)
    outputs, _ = run_lstm(layer, inputs)
    torch.testing.assert_close(outputs, reference(inputs)[0])
    hidden, cell = torch.zeros(2, 3), torch.zeros(2, 6)
    for time, frame in enumerate(inputs):
        gates = frame @ layer.weight_ih_l0.T + hidden @ layer.weight_hh_l0.T
        gates = gates + layer.bias_ih_l0 + layer.bias_hh_l0
        admit, forget, candidate, emit = gates.split(6, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(admit) * torch.tanh(candidate)
        hidden = (torch.sigmoid(emit) * torch.tanh(cell)) @ layer.weight_hr_l0.T
        torch.testing.assert_close(hidden, outputs[time])


@pytest.mark.parametrize("factor", [0, 3, 16, -2])
def test_illegal_time_reductions(factor: int) -> None:
    with pytest.raises(ValueError, match=f"time_reduction is {factor}; .* power of two"):
        num_reductions(factor, 4)
