#!/usr/bin/env bash
# safetensors 0.8.0 saves numpy arrays that are not in C order with their numbers mixed up, in silence.
#
# One expects what all earlier versions do (0.4.5 to 0.7.0 were tried): arrays that are equal are saved
# equal. Or what safetensors.torch does: "You are trying to save a non contiguous tensor", an error.
# `safetensors.numpy.save` and `save_file` of 0.8.0 write the array's memory as it lies, under the
# shape of the array. What compresses a net makes such arrays all the time, without asking for an
# order: a mask or a rounding of a transposed matrix (`np.where`, `*`, `astype` keep the order of
# what they read), columns that are left of a matrix, and both factors of scipy.linalg.svd. `np.copy`
# does not help; `np.ascontiguousarray` does. Shape, dtype, number of zeros, norm, least and largest
# value in the file are all right, so only the net's outputs tell.
#
# Seen with safetensors 0.8.0, numpy 2.4.6, scipy 1.17.1, Python 3.11, Linux x86-64; 2026-12-01. Known
# there (issue 825 of safetensors). Exits non-zero if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np, safetensors, scipy
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__, "numpy", np.__version__, "scipy", scipy.__version__)
weight = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
loud = np.abs(weight) > 1.5
left, _, right = scipy.linalg.svd(weight, full_matrices=False)
arrays = {
    "weight": weight,
    "pruned": np.where(loud, weight, 0),
    "transposed and pruned": np.where(loud.T, weight.T, 0),
    "transposed and rounded": weight.T.astype(np.float16),
    "np.copy of transposed": np.copy(weight.T),
    "columns that are left": weight[:, np.flatnonzero(loud.any(0))],
    "left factor of scipy's svd": left,
    "right factor of scipy's svd": right,
    "np.ascontiguousarray of transposed": np.ascontiguousarray(weight.T),
}
save_file(arrays, "net.safetensors")
back = load_file("net.safetensors")
wrong = []
for name, array in arrays.items():
    found = back[name]
    assert found.shape == array.shape and found.dtype == array.dtype
    assert np.count_nonzero(found) == np.count_nonzero(array)
    assert np.array_equal(np.sort(found, None), np.sort(array, None))
    if not np.array_equal(found, array):
        wrong.append(name)
    print(f"{name:35} {'WRONG' if name in wrong else 'right'}")
expected = [name for name in arrays if name not in ("weight", "pruned", list(arrays)[-1])]
if wrong != expected:
    raise SystemExit("the behaviour has changed")
print("as described")
PYTHON
