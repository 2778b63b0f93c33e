"""Measures the kernels on the LSTM encoder of the 110 M recipe: 5 x 1400 cells, one thread.

All nets are in one process and take turns, so that a busy machine slows them alike, and no cache
holds the weights of any. Times are processor time of the thread, which on an idle machine is
the time that passes. The dense reference is the faster of torch and onnxruntime in the round.

    OMP_NUM_THREADS=1 python tools/benchmark_sparse_kernels.py --rounds 30
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from omnisparse.artifact import bitmask
from omnisparse.artifact.packed import PackedModel, PackedTensor, dense_tensor
from omnisparse.artifact.precision import round_values, row_scales
from omnisparse.deploy.layers import Lstm, WeightReader
from omnisparse.deploy.native import LEVELS, kernels
from omnisparse.deploy.sparse_kernels import Room

LAYERS, CELLS, FEATURES = 5, 1400, 240
TAGS = {"fp32": "F32", "fp16": "F16", "int8": "I8"}


@functools.cache
def weights_of(layer: int, columns: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(layer)
    bound = CELLS**-0.5
    shapes = {"weight_ih_l0": columns, "weight_hh_l0": CELLS}
    found = {
        name: (2 * bound) * (rng.random((4 * CELLS, width), np.float32) - np.float32(0.5))
        for name, width in shapes.items()
    }
    for name in ("bias_ih_l0", "bias_hh_l0"):
        found[name] = np.zeros(4 * CELLS, np.float32)
    return found


def thinned(name: str, weight: np.ndarray, keep: float, block: int, precision: str) -> PackedTensor:
    """A matrix of which random blocks are kept, as a file holds it."""
    rng = np.random.default_rng(len(name))
    kept = rng.random((-(-weight.shape[0] // block), weight.shape[1]), np.float32) < keep
    weight = weight * np.repeat(kept, block, axis=0)[: weight.shape[0]]
    scale = row_scales(weight) if precision == "int8" else None
    values = round_values(weight, precision, None if scale is None else scale[:, None])  # type: ignore[arg-type]
    if block == 1:
        mask = values != 0
        bits, stored, packing = bitmask.pack_mask(mask), values[mask], "bitmask"
    else:
        bits, stored = bitmask.pack_blocks(values, (block, 1))
        packing = "block"
    return PackedTensor(
        name,
        weight.shape,
        packing,
        TAGS[precision],
        stored,
        bits,
        (block, 1),
        scale,  # type: ignore[arg-type]
    )


def ours(keep: float, block: int, precision: str) -> tuple[list[Lstm], int]:
    layers, total = [], 0
    for layer in range(LAYERS):
        columns = FEATURES if layer == 0 else CELLS
        weights = weights_of(layer, columns)

        def read(name: str, weights: dict[str, np.ndarray] = weights) -> PackedTensor:
            key = name.partition(".")[2]
            if "weight" in key and keep < 1:
                return thinned(name, weights[key], keep, block, precision)
            if "weight" in key and precision == "fp16":
                return dense_tensor(name, weights[key].astype(np.float16))
            return dense_tensor(name, weights[key])

        names = tuple(f"lstm.{name}" for name in weights)
        reader = WeightReader(PackedModel({}, {}, b"", names, read, "net"))
        layers.append(Lstm(reader, "lstm", columns, CELLS, None))
        total += reader.num_bytes
    return layers, total


def run_ours(layers: list[Lstm], frames: np.ndarray) -> Callable[[], np.ndarray]:
    states = [layer.zero_state(1) for layer in layers]

    def run() -> np.ndarray:
        x = frames
        for index, layer in enumerate(layers):
            x, states[index] = layer.run(x, states[index])
        return x

    return run


def run_torch(frames: np.ndarray) -> Callable[[], np.ndarray]:
    layers = []
    for layer in range(LAYERS):
        columns = FEATURES if layer == 0 else CELLS
        lstm = torch.nn.LSTM(columns, CELLS)
        state = {
            name: torch.from_numpy(array) for name, array in weights_of(layer, columns).items()
        }
        lstm.load_state_dict(state)
        layers.append(lstm.eval())
    states: list = [None] * LAYERS
    inputs = torch.from_numpy(frames)[:, None]

    @torch.inference_mode()
    def run() -> np.ndarray:
        x = inputs
        for index, layer in enumerate(layers):
            x, states[index] = layer(x, states[index])
        return x[:, 0].numpy()

    return run


def run_onnx(frames: np.ndarray) -> Callable[[], np.ndarray]:
    nodes, initializers, inputs, outputs = [], [], [], []
    x = "x"
    order = [0, 3, 1, 2]  # torch: input, forget, cell, output; ONNX: input, output, forget, cell
    for layer in range(LAYERS):
        columns = FEATURES if layer == 0 else CELLS
        weights = weights_of(layer, columns)

        def reordered(array: np.ndarray) -> np.ndarray:
            return array.reshape(4, CELLS, -1)[order].reshape(1, 4 * CELLS, -1)

        for name, key in (("W", "weight_ih_l0"), ("R", "weight_hh_l0")):
            initializers.append(numpy_helper.from_array(reordered(weights[key]), f"{name}{layer}"))
        for name in ("h", "c"):
            inputs.append(
                helper.make_tensor_value_info(f"{name}{layer}", TensorProto.FLOAT, [1, 1, CELLS])
            )
            outputs.append(
                helper.make_tensor_value_info(
                    f"{name}{layer}_out", TensorProto.FLOAT, [1, 1, CELLS]
                )
            )
        nodes.append(
            helper.make_node(
                "LSTM",
                [x, f"W{layer}", f"R{layer}", "", "", f"h{layer}", f"c{layer}"],
                [f"y{layer}", f"h{layer}_out", f"c{layer}_out"],
                hidden_size=CELLS,
            )
        )
        nodes.append(helper.make_node("Squeeze", [f"y{layer}", "axis"], [f"x{layer}"]))
        x = f"x{layer}"
    initializers.append(numpy_helper.from_array(np.array([1]), "axis"))
    inputs.insert(0, helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", 1, FEATURES]))
    outputs.insert(0, helper.make_tensor_value_info(x, TensorProto.FLOAT, ["T", 1, CELLS]))
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    states = {f"{n}{i}": np.zeros((1, 1, CELLS), np.float32) for i in range(LAYERS) for n in "hc"}
    names = [output.name for output in outputs]

    def run() -> np.ndarray:
        found = session.run(names, {"x": frames[:, None], **states})
        for name, value in zip(names[1:], found[1:], strict=True):
            states[name.removesuffix("_out")] = value
        return found[0][:, 0]

    return run


def read_seconds(array: np.ndarray) -> float:
    """Time of one thread to read an array once, by a product with itself."""
    start = time.thread_time()
    np.vdot(array, array)
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--frames", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--sparsities", nargs="*", type=float, default=[50, 80, 90, 97.5])
    parser.add_argument("--precisions", nargs="*", default=["fp32", "fp16"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    nets: dict[str, tuple[list[Lstm], int]] = {
        "dense fp32": ours(1.0, 1, "fp32"),
        "dense fp16": ours(1.0, 1, "fp16"),
    }
    for block in (8, 16, 1):
        for precision in options.precisions:
            for sparsity in options.sparsities:
                if sparsity == 50 and (precision, block) == ("fp16", 16):
                    continue
                label = f"{block}x1 {precision} {sparsity:g} %"
                nets[label] = ours(1 - sparsity / 100, block, precision)
                print(f"packed {label}: {nets[label][1] / 1e6:.1f} MB", flush=True)
    print(
        f"\nkernels {LEVELS[kernels()[1]]}, torch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}"
    )
    for count in options.frames:
        frames = np.random.default_rng(9).standard_normal((count, FEATURES)).astype(np.float32)
        runs = {"torch": run_torch(frames), "onnxruntime": run_onnx(frames)}
        runs |= {label: run_ours(layers, frames) for label, (layers, _) in nets.items()}
        first = {label: run() for label, run in runs.items()}
        for label in ("onnxruntime", "dense fp32"):
            difference = np.abs(first[label] - first["torch"]).max()
            assert difference < 1e-4, (label, difference)
        times: dict[str, list[float]] = {label: [] for label in runs}
        large = Room().empty((50_000_000,), np.float32)
        large[:] = 1
        reading = []
        for _ in range(options.rounds):
            reading.append(read_seconds(large))
            for label, run in runs.items():
                start = time.thread_time()
                run()
                times[label].append(time.thread_time() - start)
        speed = large.nbytes / min(reading) / 1e9
        dense = np.minimum(times["torch"], times["onnxruntime"])
        print(f"\n{count} frame(s) a call; read bandwidth {speed:.1f} GB/s\n")
        print(
            "| net | ms, median | ms, least | x best dense (least) | x, median of rounds "
            "| share of bandwidth |"
        )
        print("|---|---|---|---|---|---|")
        for label, taken in times.items():
            ratio, least = np.median(dense / np.array(taken)), min(dense) / min(taken)
            size = nets[label][1] if label in nets else LAYERS * 0
            share = size / min(taken) / 1e9 / speed
            print(
                f"| {label} | {1e3 * np.median(taken):.2f} | {1e3 * min(taken):.2f} | {least:.2f} "
                f"| {ratio:.2f} | {f'{share:.2f}' if size and count == 1 else ''} |"
            )


if __name__ == "__main__":
    main()
