#!/usr/bin/env bash
# An ONNX LSTM: onnx's own evaluator leaves out four of its parts in silence, OpenVINO two; two wrong ones agree.
#
# The operator has parts that small speech models use: peepholes (`P`), input and forget gates that are
# one (`input_forget`, a quarter of the weights less), a `clip`, other `activations`, and the lengths of a padded
# batch. One expects that a reader that lacks a part refuses the node, and that
# onnx.reference.ReferenceEvaluator, made to say what is right, has them all. It computes a plain LSTM over
# the padding whatever the node says, except for `P`. OpenVINO drops `P` and `input_forget`, without an
# error or a warning. Where gates are coupled, the evaluator and OpenVINO agree to the last digits, and
# onnxruntime, which does what the node says, looks wrong. With `clip`, none of the three is right: the
# specification says that the inputs of all activations are clipped, and onnxruntime and OpenVINO leave out the last
# one, of the cell (issue 27224 of onnxruntime). So a second runtime that agrees proves nothing here.
#
# Way out: compare with a few lines of numpy, as below.
#
# Seen with onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, numpy 2.4.6, Python 3.11, Linux x86-64;
# 2026-12-01. Exits non-zero if the behaviour changes.
set -euo pipefail
export OMP_NUM_THREADS=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np, onnx, onnxruntime, openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__, "openvino", openvino.__version__)
FRAMES, BATCH, INPUTS, HIDDEN = 6, 3, 8, 16
LENGTHS = np.array([6, 4, 1], np.int32)
random = np.random.default_rng(0)
SHAPES = {"W": (64, INPUTS), "R": (64, HIDDEN), "B": (128,), "P": (48,)}
WEIGHTS = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
GIVEN = {
    "X": random.standard_normal((FRAMES, BATCH, INPUTS)).astype(np.float32),
    "h": random.standard_normal((1, BATCH, HIDDEN)).astype(np.float32),
    "c": random.standard_normal((1, BATCH, HIDDEN)).astype(np.float32),
}
PARTS = {
    "nothing": {},
    "sequence_lens": {"lengths": LENGTHS},
    "P": {"peepholes": True},
    "input_forget": {"input_forget": 1},
    "clip": {"clip": 0.5},
    "activations": {"activations": ["Sigmoid", "Tanh", "Relu"]},
}
ACTIVATIONS = {
    "Sigmoid": lambda value: 1 / (1 + np.exp(-value)),
    "Tanh": np.tanh,
    "Relu": lambda value: np.maximum(value, 0),
}


def model(lengths=None, peepholes=False, **attributes):
    inputs = ["X", "W", "R", "B", "" if lengths is None else "lengths", "h", "c"] + ["P"] * peepholes
    node = helper.make_node("LSTM", inputs, ["Y", "h_last", "c_last"], hidden_size=HIDDEN, **attributes)
    weights = [numpy_helper.from_array(WEIGHTS[name][None], name) for name in "WRB" + "P" * peepholes]
    sizes = {"Y": [FRAMES, 1, BATCH, HIDDEN], **{f"{s}_last": [1, BATCH, HIDDEN] for s in "hc"}}
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in GIVEN.items()]
    if lengths is not None:
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [BATCH]))
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sizes.items()]
    graph = helper.make_graph([node], "net", given, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def specified(
    lengths=None, peepholes=False, input_forget=0, clip=np.inf, activations=("Sigmoid", "Tanh", "Tanh"), last=True
):
    """The equations of the specification; `last` False: the cell's activation is not clipped."""
    W, R, B, P = (WEIGHTS[name].astype(np.float64) for name in "WRBP")
    to_input, to_output, to_forget = np.split(P * peepholes, 3)
    of_gate, of_cell, of_output = (ACTIVATIONS[name] for name in activations)
    h, c, outputs = GIVEN["h"][0], GIVEN["c"][0], []
    for step, x in enumerate(GIVEN["X"]):
        i, o, f, g = np.split(x @ W.T + h @ R.T + B[:64] + B[64:], 4, -1)
        i = of_gate(np.clip(i + to_input * c, -clip, clip))
        f = 1 - i if input_forget else of_gate(np.clip(f + to_forget * c, -clip, clip))
        cell = f * c + i * of_cell(np.clip(g, -clip, clip))
        o = of_gate(np.clip(o + to_output * cell, -clip, clip))
        hidden = o * of_output(np.clip(cell, -clip, clip) if last else cell)
        goes_on = (step < (FRAMES if lengths is None else lengths) * np.ones(BATCH))[:, None]
        h, c = np.where(goes_on, hidden, h), np.where(goes_on, cell, c)
        outputs.append(np.where(goes_on, hidden, 0))
    return np.stack(outputs)[:, None], h[None], c[None]


def results(made, given):
    onnx.save(made, "net.onnx")
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    compiled = openvino.compile_model("net.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {
        "onnx's evaluator": ReferenceEvaluator(made).run(None, given),
        "OpenVINO": [np.array(value) for value in compiled(given).values()],
        "onnxruntime": session.run(None, given),
    }


def equal(some, others):
    return all(np.abs(one - other).max() < 1e-4 for one, other in zip(some, others, strict=True))


seen = {}
for part, options in PARTS.items():
    lengths = options.get("lengths")
    given = GIVEN if lengths is None else {**GIVEN, "lengths": lengths}
    found = results(model(**options), given)
    right = specified(**options)
    seen[part] = {}
    for name, values in found.items():
        if equal(values, right):
            verdict = "right"
        elif equal(values, specified()):
            verdict = "left out"
        elif part == "clip" and equal(values, specified(**options, last=False)):
            verdict = "not the cell"
        else:
            verdict = "other"
        seen[part][name] = verdict
    far = {name: float(np.abs(values[0] - right[0]).max()) for name, values in found.items()}
    print(f"{part:14}", "  ".join(f"{name}: {seen[part][name]} ({far[name]:.0e})" for name in found))
    if part == "input_forget":
        assert equal(found["onnx's evaluator"], found["OpenVINO"])
expected = {
    "nothing": ["right"] * 3,
    "sequence_lens": ["left out", "right", "right"],
    "P": ["right", "left out", "right"],
    "input_forget": ["left out", "left out", "right"],
    "clip": ["left out", "not the cell", "not the cell"],
    "activations": ["left out", "right", "right"],
}
if {part: list(verdicts.values()) for part, verdicts in seen.items()} != expected:
    raise SystemExit("the behaviour has changed")
print("as described")
PYTHON
