#!/usr/bin/env bash
# OpenVINO obeys `sequence_lens` of an ONNX LSTM or GRU only while every shape is fixed; else it reads the padding.
#
# The lengths of a padded batch are an input of LSTM, GRU and RNN in ONNX. One expects that a runtime
# either obeys them or refuses the model. OpenVINO's CPU plugin obeys them if the numbers of frames and of
# utterances are both fixed: then it makes a loop with a mask. As soon as one of them is free, as in about
# any speech model, it takes one fast node, which reads all frames. Nothing is said, and all shapes are right.
# Forwards, the last state (a decoder's first, a classifier's input) is that after the padding. Backwards, the
# layer starts in the padding: ALL frames of every utterance but the longest are wrong, and so is half of what a
# bidirectional layer says of them. A test without padding passes.
# PyTorch's older exporter (`dynamo=False`, torch 2.11) writes such lengths for `pack_padded_sequence`.
#
# Way out: fix the shapes (`model.reshape`) before compiling, once for each size; or, for a layer that runs
# backwards, a forward one between two ReverseSequence nodes, which obey the lengths at free sizes, too, and
# its state from the outputs. Both are done below.
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

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__, "openvino", openvino.__version__)
FRAMES, INPUTS, HIDDEN = 8, 16, 32
LENGTHS = np.array([8, 5, 2], np.int32)
SOUND = np.random.default_rng(1).standard_normal((FRAMES, 3, INPUTS)).astype(np.float32)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
REAL = np.arange(FRAMES)[:, None] < LENGTHS


def model(op, direction, frames, utterances, turned=False):
    """A layer; `turned`: one that runs backwards by means of ReverseSequence."""
    random, ways = np.random.default_rng(0), 1 + (direction == "bidirectional")
    rows = GATES[op] * HIDDEN
    shapes = {"W": [ways, rows, INPUTS], "R": [ways, rows, HIDDEN], "B": [ways, 2 * rows]}
    weights = [
        numpy_helper.from_array((random.standard_normal(shape) / 4).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    options = {"hidden_size": HIDDEN, **({"linear_before_reset": 1} if op == "GRU" else {})}
    if not turned:
        inputs = ["X", "W", "R", "B", "lengths"]
        nodes = [helper.make_node(op, inputs, ["Y", "last"], direction=direction, **options)]
    else:
        axes = {"time_axis": 0, "batch_axis": 1}
        weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
        weights.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
        nodes = [
            helper.make_node("Cast", ["lengths"], ["long"], to=TensorProto.INT64),
            helper.make_node("ReverseSequence", ["X", "long"], ["backwards"], **axes),
            helper.make_node(op, ["backwards", "W", "R", "B"], ["found"], **options),
            helper.make_node("Squeeze", ["found", "one"], ["flat"]),
            helper.make_node("ReverseSequence", ["flat", "long"], ["forwards"], **axes),
            helper.make_node("Unsqueeze", ["forwards", "one"], ["Y"]),
            helper.make_node("Gather", ["Y", "first"], ["last"], axis=0),
        ]
    kinds = {"X": (TensorProto.FLOAT, [frames, utterances, INPUTS]), "lengths": (TensorProto.INT32, [utterances])}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()],
        [
            helper.make_tensor_value_info("Y", TensorProto.FLOAT, [frames, ways, utterances, HIDDEN]),
            helper.make_tensor_value_info("last", TensorProto.FLOAT, [ways, utterances, HIDDEN]),
        ],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, "net.onnx")


def in_openvino(utterances, fixed=False):
    read = openvino.Core().read_model("net.onnx")
    given = {"X": SOUND[:, utterances], "lengths": LENGTHS[utterances]}
    if fixed:
        read.reshape({name: value.shape for name, value in given.items()})
    compiled = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(value) for value in compiled(given).values()]


def wrong(found, wanted, utterances):
    """How many frames, the padding left out, have wrong outputs; how many utterances a wrong last state."""
    frames = (np.abs(found[0] - wanted[0]).max((1, 3)) > 1e-3) & REAL[:, utterances]
    states = np.abs(found[1] - wanted[1]).max((0, 2)) > 1e-3
    return int(frames.sum()), int(states.sum())


everyone, as_seen = [0, 1, 2], True
print(f"utterances of {LENGTHS.tolist()} frames; (frames with wrong outputs, wrong last states):")
for op in GATES:
    for direction in ("forward", "reverse", "bidirectional"):
        seen = {}
        for sizes in ((FRAMES, 3), (FRAMES, "N"), ("T", 3), ("T", "N")):
            model(op, direction, *sizes)
            session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
            wanted = session.run(None, {"X": SOUND, "lengths": LENGTHS})
            seen[str(sizes)] = wrong(in_openvino(everyone), wanted, everyone)
        # What onnxruntime says of the batch is what it says of each utterance without padding.
        for one in everyone:
            size = LENGTHS[one]
            Y, last = session.run(None, {"X": SOUND[:size, [one]], "lengths": LENGTHS[[one]]})
            assert np.allclose(wanted[0][:size, :, [one]], Y, atol=1e-5)
            assert np.allclose(wanted[1][:, [one]], last, atol=1e-5)
        seen["reshape"] = wrong(in_openvino(everyone, fixed=True), wanted, everyone)
        middle = [wanted[0][:, :, [1]], wanted[1][:, [1]]]
        seen["the second alone"] = wrong(in_openvino([1]), middle, [1])
        if direction == "reverse":
            model(op, direction, "T", "N", turned=True)
            seen["ReverseSequence"] = wrong(in_openvino(everyone), wanted, everyone)
        print(f"{op:4} {direction:13}", "  ".join(f"{key}: {value}" for key, value in seen.items()))
        short = 0 if direction == "forward" else int(LENGTHS[1:].sum())
        expected = {key: (short, 2) for key in seen} | {"(8, 3)": (0, 0), "reshape": (0, 0)}
        expected["the second alone"] = (0 if direction == "forward" else int(LENGTHS[1]), 1)
        if direction == "reverse":
            expected["ReverseSequence"] = (0, 0)
        as_seen &= seen == expected
if not as_seen:
    raise SystemExit("the behaviour has changed")
print("as described")
PYTHON
