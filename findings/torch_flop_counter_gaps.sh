#!/usr/bin/env bash
# torch.utils.flop_counter on a CPU counts no LSTM and no scaled dot product attention, and too much for the
# backward pass of a grouped convolution.
#
# An nn.LSTM and F.scaled_dot_product_attention (with a mask, as used in training) add 0 operations. The gradient of a
# depthwise convolution's input is counted as that of a full one: C times too many for C channels. So totals of
# speech models may be far off, in both directions. nn.Linear, bmm and plain convolutions are right.
#
# torch 2.11.0 (CPU), 2026-11-30. torch 2.15.0 counts that attention: two products forward, five backward (the scores
# are made again). Exits non-zero if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.11.0" "numpy<3"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


frames = torch.randn(7, 3, 5, requires_grad=True)
lstm = nn.LSTM(5, 4)
found = counted(lambda: lstm(frames)[0].sum().backward())
print("LSTM, forward and backward:", found, "instead of", 3 * 2 * 7 * 3 * 16 * (5 + 4))
assert found == 0, "LSTMs are counted now"

queries = torch.randn(2, 2, 8, 4, requires_grad=True)
mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
found = counted(
    lambda: F.scaled_dot_product_attention(queries, queries, queries, attn_mask=mask).sum().backward()
)
print("attention, forward and backward:", found, "instead of", 3 * 2 * (2 * 2 * 2 * 8 * 8 * 4))
assert found == 0, "attention is counted now"

inputs = torch.randn(3, 8, 10, requires_grad=True)
depthwise = nn.Conv1d(8, 8, 3, groups=8)
forward = counted(lambda: depthwise(inputs))
both = counted(lambda: depthwise(inputs).sum().backward())
print("depthwise convolution:", forward, "forward,", both, "with backward instead of", 3 * forward)
assert both == forward * (1 + 1 + 8), "grouped convolutions are counted otherwise now"
PYTHON
