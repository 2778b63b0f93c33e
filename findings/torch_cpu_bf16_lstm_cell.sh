#!/usr/bin/env bash
# An nn.LSTM in bfloat16 on a CPU keeps its CELL STATE in bfloat16, between time steps too.
#
# Surprising, because mixed-precision recurrent kernels are expected to accumulate in float32: a cell
# that fills slowly (forget gate 1, small additions) stops moving as soon as an addition is less than
# half of bfloat16's grain. Here it stands still at 0.5 instead of reaching 0.75.
# The kernel behind it can do better: torch.mkldnn_rnn_layer with a float32 first cell keeps float32.
#
# torch 2.11.0 (CPU), 2026-11-30. Exits non-zero if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.11.0" "numpy<3"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

print("torch", torch.__version__)
layer = nn.LSTM(4, 32)
with torch.no_grad():
    for parameter in layer.parameters():
        parameter.zero_()
    for gate, value in enumerate((-6.0, 20.0, 1.0, 20.0)):  # input, forget, candidate, output
        layer.bias_ih_l0[32 * gate : 32 * gate + 32] = value
inputs = torch.zeros(400, 2, 4)
with torch.no_grad():
    exact = layer(inputs)[1][1][0, 0, 0].item()
    half = nn.LSTM(4, 32).bfloat16()
    half.load_state_dict(layer.state_dict())
    stuck = half(inputs.bfloat16())[1][1][0, 0, 0].item()
    weights = list(half.parameters())
    zeros = torch.zeros(2, 32)
    direct = torch.mkldnn_rnn_layer(
        inputs.bfloat16(), *weights, zeros.bfloat16(), zeros, False, [], 2, 32, 1, True, False,
        False, True,
    )[2][0, 0].item()
print(f"cell after 400 steps: float32 {exact:.4f}, nn.LSTM in bfloat16 {stuck:.4f}, "
      f"the kernel with a float32 cell {direct:.4f}")
assert abs(exact - 0.7533) < 1e-3
assert stuck == 0.5, "nn.LSTM in bfloat16 no longer stands still"
assert abs(direct - exact) < 0.01, "the kernel no longer keeps a float32 cell"
PYTHON
