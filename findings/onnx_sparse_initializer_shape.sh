#!/usr/bin/env bash
# onnx takes a sparse initializer for a number without dimensions, and OpenVINO does not find it at all.
#
# A `sparse_initializer` states its dimensions, so one expects that `onnx.shape_inference` knows them.
# It gives the shape []: a product of W [4, 8] with x [1, 8] "has" the shape [1, 8], the transpose of W
# the shape [], and its `Shape` no elements. Wrong shapes are written into the model in silence, and
# `check_model`, which accepted the model before, accepts them. With `full_check=True` it refuses the
# right model: "has unsupported type: sparse_tensor(float)". OpenVINO: "Input tensor isn't found for node".
# onnxruntime computes the right thing.
#
# Way out: the same sparse tensor as the attribute `sparse_value` of a `Constant` node. The file is as
# small, all shapes are right, `full_check` passes, and OpenVINO and onnxruntime compute the same.
#
# Seen with onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, numpy 2.4.6, Python 3.11, Linux x86-64;
# 2026-12-01. Exits non-zero if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np, onnx, onnxruntime, openvino
from onnx import TensorProto, helper, numpy_helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__, "openvino", openvino.__version__)
weight = np.zeros((4, 8), np.float32)
weight[1, 2], weight[3, 5] = 3, -1
places = np.flatnonzero(weight)
given = np.arange(8, dtype=np.float32)[None]
NODES = {"Mul": ["W", "x"], "Transpose": ["W"], "Shape": ["W"], "MatMul": ["x", "flipped"]}
RIGHT = {"Mul": [4, 8], "Transpose": [8, 4], "Shape": [2], "MatMul": [1, 4]}


def sparse(name):
    values = numpy_helper.from_array(weight.reshape(-1)[places], name)
    indices = numpy_helper.from_array(places.astype(np.int64), f"{name}_places")
    return helper.make_sparse_tensor(values, indices, [4, 8])


def model(op, as_node):
    nodes = [helper.make_node("Constant", [], ["W"], sparse_value=sparse("values"))] * as_node
    nodes += [helper.make_node("Transpose", ["W"], ["flipped"])] * (op == "MatMul")
    nodes += [helper.make_node(op, NODES[op], ["z"]), helper.make_node("Identity", ["z"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])
    kind = TensorProto.INT64 if op == "Shape" else TensorProto.FLOAT
    y = helper.make_tensor_value_info("y", kind, list("ab")[: len(RIGHT[op])])
    graph = helper.make_graph(nodes, "g", [x], [y], sparse_initializer=[] if as_node else [sparse("W")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def inferred(made):
    found = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(found)
    for info in found.graph.value_info:
        if info.name == "z":
            return [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    return None


def passes(check):
    try:
        check()
    except Exception as error:
        return f"no, {[line for line in str(error).splitlines() if line.strip()][-1].strip()[-72:]}"
    return "yes"


def openvino_output(made):
    onnx.save(made, "model.onnx")
    return openvino.compile_model("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)[0]


print("inferred shapes of", {op: " ".join(inputs) for op, inputs in NODES.items()})
shapes, checks, reads = {}, {}, {}
for as_node in (False, True):
    shapes[as_node] = {op: inferred(model(op, as_node)) for op in NODES}
    one = model("MatMul", as_node)
    checks[as_node] = passes(lambda: onnx.checker.check_model(one, full_check=True))
    reads[as_node] = passes(lambda: openvino_output(one))
    for op in ("Mul", "MatMul"):
        made = model(op, as_node)
        want = weight * given if op == "Mul" else given @ weight.T
        session = onnxruntime.InferenceSession(made.SerializeToString())
        assert np.array_equal(session.run(None, {"x": given})[0], want)
        if reads[as_node] == "yes":
            assert np.array_equal(openvino_output(made), want)
    print("Constant node:     " if as_node else "sparse_initializer:", shapes[as_node])
    print(f"  full check: {checks[as_node]}\n  OpenVINO reads it: {reads[as_node]}")
as_seen = (
    shapes[False] == {"Mul": [1, 8], "Transpose": [], "Shape": [0], "MatMul": None}
    and shapes[True] == RIGHT
    and [checks[True], reads[True]] == ["yes", "yes"]
    and "yes" not in (checks[False], reads[False])
)
if not as_seen:
    raise SystemExit("the behaviour has changed")
print("as described")
PYTHON
