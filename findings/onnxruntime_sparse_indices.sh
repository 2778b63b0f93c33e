#!/usr/bin/env bash
# onnxruntime saves an optimised model that onnx's own checker refuses.
#
# A model with a `sparse_initializer` (int64 places, as the ONNX specification wants) is valid. Saved
# by onnxruntime (`optimized_model_filepath`), its places are int32, and `onnx.checker` says: "Sparse
# tensor indices must have INT64 type". onnxruntime loads both files and computes the same.
# So: keep the original file, and never check or ship the optimised one.
#
# Seen with onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11, Linux x86-64; 2026-11-30.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
weight = np.zeros((8, 8), np.float32)
weight[::3, ::2] = 1.5
places = np.flatnonzero(weight)
sparse = helper.make_sparse_tensor(
    numpy_helper.from_array(weight.reshape(-1)[places], "W"),
    numpy_helper.from_array(places.astype(np.int64), "W_places"),
    [8, 8],
)
x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 8]) for n in "xy")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "W"], ["y"])], "g", [x], [y], sparse_initializer=[sparse]
)
onnx.save(
    helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "own.onnx"
)
onnx.checker.check_model("own.onnx")
print("checker: own.onnx is valid")
options = onnxruntime.SessionOptions()
options.optimized_model_filepath = "optimised.onnx"
given = {"x": np.eye(8, dtype=np.float32)}
first = onnxruntime.InferenceSession("own.onnx", options).run(None, given)[0]
second = onnxruntime.InferenceSession("optimised.onnx").run(None, given)[0]
assert np.array_equal(first, weight) and np.array_equal(second, weight)
print("onnxruntime: both files compute the same")
try:
    onnx.checker.check_model("optimised.onnx")
except onnx.checker.ValidationError as error:
    print("checker: optimised.onnx:", str(error).splitlines()[0])
    assert "INT64" in str(error)
else:
    raise SystemExit("the behaviour has changed: the optimised file is valid")
PYTHON
