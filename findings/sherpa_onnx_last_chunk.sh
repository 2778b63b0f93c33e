#!/usr/bin/env bash
# sherpa-onnx decodes a chunk only when more frames than the chunk have arrived, even at the end.
#
# A streaming transducer that reads 8 frames of 10 ms at a time is given exactly 16 frames and told
# that the input is finished. One would expect two chunks; sherpa-onnx decodes one. The test is
# "processed + T < ready", and `input_finished` does not change it, so a complete last chunk is left
# out without a word. So: append silence of more than a chunk before `input_finished`.
#
# Seen with sherpa-onnx 2.0.1, onnx 1.23.2, numpy 2.4.6, Python 3.11, Linux x86-64; 2026-11-30.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sherpa-onnx==2.0.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np, onnx, sherpa_onnx
from onnx import TensorProto, helper, numpy_helper

print("sherpa-onnx", sherpa_onnx.__version__, "onnx", onnx.__version__)
T, BINS, WIDTH, TOKENS = 8, 80, 4, 3


def save(name, nodes, inputs, outputs, constants, metadata):
    def values(given):
        return [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in given]

    graph = helper.make_graph(
        nodes, name, values(inputs), values(outputs),
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{name}.onnx")


node, FLOAT, INT64 = helper.make_node, TensorProto.FLOAT, TensorProto.INT64
state = [1, "N", WIDTH]
save(
    "encoder",
    [
        node("Reshape", ["x", "shape"], ["stacked"]),
        node("MatMul", ["stacked", "weight"], ["encoder_out"]),
        node("Identity", ["h"], ["new_h"]),
        node("Identity", ["c"], ["new_c"]),
    ],
    [("x", FLOAT, ["N", T, BINS]), ("h", FLOAT, state), ("c", FLOAT, state)],
    [("encoder_out", FLOAT, ["N", 2, WIDTH]), ("new_h", FLOAT, state), ("new_c", FLOAT, state)],
    {"shape": np.array([0, 2, 4 * BINS]), "weight": np.zeros((4 * BINS, WIDTH), np.float32)},
    {"model_type": "lstm", "num_encoder_layers": 1, "T": T, "decode_chunk_len": T,
     "rnn_hidden_size": WIDTH, "d_model": WIDTH},
)
save(
    "decoder",
    [node("Cast", ["y"], ["floats"], to=FLOAT), node("MatMul", ["floats", "w"], ["decoder_out"])],
    [("y", INT64, ["N", 2])], [("decoder_out", FLOAT, ["N", WIDTH])],
    {"w": np.zeros((2, WIDTH), np.float32)}, {"vocab_size": TOKENS, "context_size": 2},
)
save(
    "joiner",
    [node("Add", ["encoder_out", "decoder_out"], ["s"]), node("MatMul", ["s", "w"], ["p"]),
     node("Add", ["p", "b"], ["logit"])],
    [("encoder_out", FLOAT, ["N", WIDTH]), ("decoder_out", FLOAT, ["N", WIDTH])],
    [("logit", FLOAT, ["N", TOKENS])],
    {"w": np.zeros((WIDTH, TOKENS), np.float32), "b": np.array([0, 5, 0], np.float32)},
    {"joiner_dim": WIDTH},
)
with open("tokens.txt", "w") as file:
    file.write("<blk> 0\na 1\n<unk> 2\n")
recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    tokens="tokens.txt", encoder="encoder.onnx", decoder="decoder.onnx", joiner="joiner.onnx",
    num_threads=1,
)


def chunks(frames):
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, np.zeros(160 * frames, np.float32))
    stream.input_finished()
    count = 0
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
        count += 1
    return count


found = {frames: chunks(frames) for frames in (8, 16, 17, 24)}
print("chunks decoded by number of frames:", found)
if found != {8: 0, 16: 1, 17: 2, 24: 2}:
    raise SystemExit("the behaviour has changed")
PYTHON
