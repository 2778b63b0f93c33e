#!/usr/bin/env bash
# ggml (whisper.cpp, GGUF): for pruned weights, types with more bits are worse than types with fewer.
#
# Q4_1, Q5_1, Q2_K, Q4_K and Q5_K store a least value beside the scale of each block, and for dense weights
# they are better than Q4_0, Q5_0 and their like. One expects at least that 0 stays 0, as in ONNX and TFLite,
# where an offset is a whole number of steps. Here the least value is a number of its own, and 0 lies between two steps:
# of a matrix with three quarters zeros, 2 to 11 % of the zeros stay zero. And all pruned weights of a block become
# the SAME wrong value: where inputs have one sign, as behind a ReLU, these errors add up instead of
# cancelling. So Q5_1 (6 bits a weight) has twice the error of Q4_0 (4.5 bits), Q5_K that of a 4-bit
# type, and Q2_K, nearly as great as the outputs themselves, ten times that of Q3_K. IQ4_NL has no 0 among its 16
# values at all. Shapes and size are right; zipped, Q5_1 is larger than Q8_0, whose error is a thirtieth.
#
# Way out: Q4_0, Q5_0, Q8_0, Q3_K and Q6_K keep 0 exactly. All types keep runs of 256 weights that are pruned as a whole.
#
# Seen with pywhispercpp 1.5.1 (whisper.cpp 1.8.5, ggml 0.13.1: it quantises), gguf 0.19.0 (it restores), numpy 2.4.6,
# Python 3.11, Linux x86-64; 2026-12-01. Exits non-zero if the behaviour changes.
set -euo pipefail
export OMP_NUM_THREADS=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pywhispercpp==1.5.1 gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import ctypes
import importlib.metadata
import pathlib
import zlib

import numpy as np
from gguf import GGMLQuantizationType, quants

for name in ("pywhispercpp", "gguf", "numpy"):
    print(name, importlib.metadata.version(name), end=" ")
(library,) = pathlib.Path(np.__file__).parents[1].glob("pywhispercpp.libs/libggml-base*")
print(library.name)
quantise = ctypes.CDLL(str(library)).ggml_quantize_chunk
quantise.restype = ctypes.c_size_t
quantise.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
EXACT = {"Q3_K": 3.4375, "Q4_0": 4.5, "Q5_0": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5}
OFFSET = {"Q2_K": 2.625, "Q4_K": 4.5, "Q4_1": 5.0, "Q5_K": 5.5, "Q5_1": 6.0}
BITS = {**EXACT, **OFFSET, "IQ4_NL": 4.5}
random = np.random.default_rng(0)
dense = (random.standard_normal((256, 1024)) / 32).astype(np.float32)
size = np.abs(dense)
runs = size.reshape(256, 4, 256).sum(-1).repeat(256, axis=1)
WEIGHTS = {
    "dense": dense,
    "3/4 zeros": np.where(size < np.quantile(size, 0.75), np.float32(0), dense),
    "3/4 runs": np.where(runs < np.quantile(runs, 0.75), np.float32(0), dense),
}
sounds = random.standard_normal((1024, 400)).astype(np.float32)
INPUTS = {"of both signs": sounds, "behind a ReLU": np.maximum(sounds, 0)}


def restored(weight, name):
    kind, made = GGMLQuantizationType[name], np.zeros(weight.size * 4, np.uint8)
    assert weight.dtype == np.float32 and weight.flags.c_contiguous
    count = quantise(kind, weight.ctypes.data, made.ctypes.data, 0, *weight.shape, None)
    made = made[:count].reshape(len(weight), -1)
    assert count * 8 == BITS[name] * weight.size
    if name[-1] in "01":  # gguf can make these types itself: it makes the same bytes
        assert np.array_equal(made, quants.quantize(weight, kind))
    return quants.dequantize(made, kind), len(zlib.compress(made.tobytes(), 9))


error, kept, zipped = {}, {}, {}
print("                        zeros that   error of the outputs, inputs")
print("weights    type    bits stay zero", "  ".join(["", *INPUTS]), "  zipped")
for title, weight in WEIGHTS.items():
    for name in sorted(BITS, key=lambda name: (BITS[name], name)):
        back, zipped[title, name] = restored(weight, name)
        kept[title, name] = float((back[weight == 0] == 0).mean()) if title != "dense" else 1.0
        both, one = (
            float(np.linalg.norm((back - weight) @ given) / np.linalg.norm(weight @ given))
            for given in INPUTS.values()
        )
        error[title, name] = one
        share = f"{kept[title, name]:.1%}" if title != "dense" else "-"
        line = f"{title:10} {name:6} {BITS[name]:5.2f} {share:>9} {both:15.1%} {one:14.1%}"
        print(line, f"{zipped[title, name]:8}")



def before(one, other):
    return error["dense", one] / error["dense", other]


def pruned(one, other):
    return error["3/4 zeros", one] / error["3/4 zeros", other]


as_seen = [
    all(kept["3/4 zeros", name] == 1 for name in EXACT),
    all(kept["3/4 zeros", name] < 0.2 for name in OFFSET) and kept["3/4 zeros", "IQ4_NL"] < 0.01,
    all(kept["3/4 runs", name] == 1 for name in BITS),
    before("Q4_1", "Q4_0") < 1 and before("Q5_1", "Q5_0") < 1 and before("Q5_1", "Q4_0") < 0.5,
    before("Q4_K", "Q4_0") < 1 and before("Q5_K", "Q5_0") < 1 and before("Q2_K", "Q3_K") < 2,
    pruned("Q4_1", "Q4_0") > 4 and pruned("Q5_1", "Q5_0") > 4 and pruned("Q5_1", "Q4_0") > 2,
    pruned("Q4_K", "Q4_0") > 1.4 and pruned("Q5_K", "Q4_0") > 1.2 and pruned("Q5_K", "Q5_0") > 2.5,
    pruned("Q2_K", "Q3_K") > 9 and error["3/4 zeros", "Q2_K"] > 0.9,
    pruned("Q5_1", "Q8_0") > 30 and zipped["3/4 zeros", "Q5_1"] > zipped["3/4 zeros", "Q8_0"],
]
if not all(as_seen):
    raise SystemExit(f"the behaviour has changed: {as_seen}")
print("as described")
PYTHON
