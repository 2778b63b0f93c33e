"""Single steps against sequences, and the layers' initial values."""

from __future__ import annotations

import pytest
import torch

from omnisparse.models.lstm import (
    lstm_step,
    make_lstm,
    num_reductions,
    run_lstm,
    zero_state,
)


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


def test_autocast_leaves_it_in_float32() -> None:
    layer = make_lstm(4, 6)
    inputs = torch.randn(7, 2, 4)
    expected, state = run_lstm(layer, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, (hidden, _) = run_lstm(layer, inputs.bfloat16().float())
        continued, _ = run_lstm(layer, inputs.bfloat16(), (hidden.bfloat16(), state[1]))
    assert outputs.dtype == continued.dtype == torch.float32
    torch.testing.assert_close(outputs, expected, rtol=0.02, atol=0.02)


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
