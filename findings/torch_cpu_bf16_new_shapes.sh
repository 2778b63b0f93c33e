#!/usr/bin/env bash
# A bfloat16 matrix product on a CPU takes four times as long when its number of rows is new.
#
# Surprising, because the product itself is twice as fast as in float32: with rows that change from
# call to call, as frames of speech do from batch to batch, bfloat16 becomes SLOWER than float32.
# oneDNN generates machine code for each new shape (a millisecond or more) and keeps that of the last
# 1024; float32 goes to MKL, which does not. Rows of zeros up to a rounded number avoid it.
#
# torch 2.11.0 (CPU with AVX512_BF16), 2026-11-30. Exits non-zero if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.11.0" "numpy<3"
"$folder/venv/bin/python" - <<'PYTHON'
import time

import torch

torch.set_num_threads(1)
print("torch", torch.__version__)


def milliseconds(rows, dtype):
    """CPU time per product of a [rows, 256] matrix with a [256, 256] one."""
    right = torch.randn(256, 256).to(dtype)
    lefts = [torch.randn(one, 256).to(dtype) for one in rows]
    for left in lefts[:3]:
        left @ right
    start = time.process_time()
    for left in lefts:
        left @ right
    return 1000 * (time.process_time() - start) / len(lefts)


found = {}
for dtype in (torch.float32, torch.bfloat16):
    for name, rows in (("one shape", [250] * 200), ("200 shapes", list(range(201, 401)))):
        found[dtype, name] = milliseconds(rows, dtype)
        print(f"{dtype}, {name}: {found[dtype, name]:.3f} ms a product")
same, new = found[torch.bfloat16, "one shape"], found[torch.bfloat16, "200 shapes"]
assert new > 2 * same, "bfloat16 products of new shapes are no longer slow"
assert found[torch.float32, "200 shapes"] < 2 * found[torch.float32, "one shape"]
PYTHON
