"""Single steps against sequences, and the layers' initial values."""

from __future__ import annotations

import pytest
import torch

from omnisparse.models import lstm_bf16 as lstm_bf16_module
from omnisparse.models.lstm import (
    lstm_step,
    make_lstm,
    num_reductions,
    run_lstm,
    zero_state,
)
from omnisparse.models.lstm_bf16 import lstm_bf16, stepwise_lstm


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


@pytest.mark.parametrize("projection", [None, 3])
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


@pytest.mark.parametrize(("projection", "few"), [(None, 8), (None, 0), (3, 8)])
def test_a_cell_that_fills_slowly_in_bfloat16(
    projection: int | None, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell in bfloat16 stands still at 0.5, where each addition is less than half its grain."""
    monkeypatch.setattr(lstm_bf16_module, "_FEW_ROWS", few)
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


@pytest.mark.parametrize(("projection", "few"), [(None, 8), (None, 0), (3, 8)])
def test_gradients_in_bfloat16(
    projection: int | None, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of float32 weights, through fused kernel and written-out layer alike."""
    monkeypatch.setattr(lstm_bf16_module, "_FEW_ROWS", few)
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


def test_the_written_out_layer_is_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lstm_bf16_module, "_FEW_ROWS", 0)
    layer = make_lstm(4, 6)
    inputs = torch.randn(9, 3, 4).bfloat16()
    weights = [parameter.detach().bfloat16() for parameter in layer.parameters()]
    hidden, cell = torch.randn(3, 6).bfloat16(), torch.randn(3, 6)
    outputs, (_, last) = lstm_bf16(inputs, weights, (hidden, cell))
    written, last_written = stepwise_lstm(inputs, weights, hidden, cell)
    torch.testing.assert_close(written, outputs, rtol=0.02, atol=0.01)
    torch.testing.assert_close(last_written, last, rtol=0.02, atol=0.01)


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
