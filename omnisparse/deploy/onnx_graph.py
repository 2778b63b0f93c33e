"""Builds ONNX graphs node by node, with the same bytes for the same net."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from omnisparse.version import __version__

OPSET = 18
"""Operators that are used: the first with ``BitwiseAnd``; onnxruntime knows it since 1.15."""

IR_VERSION = 9
"""Of the file; the one that belongs to the opset."""

STAGES = 8
"""Most stages in which weights are unpacked: onnxruntime folds constants in at most 10 rounds."""

STAGE_SHARE = 0.3
"""Share of what is left that a stage unpacks: its work takes about as much memory again as the
weights that it gives."""

STAGED_BYTES = 1 << 25
"""Weights, in bytes of memory, from which on stages are worth their nodes."""

Array = npt.NDArray[Any]
Shape = Sequence[int | str]
"""Of an input or output: numbers, and names of dimensions that vary."""


class GraphBuilder:
    """Collects nodes and constants; what its methods return are names of values.

    Args:
        name: Name of the graph, and prefix of its nodes.
        outer: The graph around a subgraph, whose values it may use.
    """

    def __init__(self, name: str, outer: GraphBuilder | None = None) -> None:
        self.name = name
        self.outer = outer
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._known: list[Any] = []
        self._constants: dict[bytes, str] = {}
        self._staged: list[tuple[int, list[Any]]] = []
        self._count = 0

    def fresh(self, hint: str) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{self.name}/{hint}_{self._count}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output.

        Args:
            kind: The operator.
            *inputs: Names of its inputs; "" for one that is left out.
            **attributes: Its attributes.

        Returns:
            The name of its output.
        """
        return self.ops(kind, *inputs, num_outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, num_outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs; see :meth:`op`."""
        name = self.fresh(kind)
        outputs = [f"{name}:{index}" for index in range(num_outputs)]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs

    def constant(self, value: Array) -> str:
        """A small constant; equal ones are stored once."""
        key = str((value.dtype, value.shape)).encode() + value.tobytes()
        if key not in self._constants:
            self._constants[key] = self.initializer(self.fresh("constant"), value)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, value: int | float) -> str:
        """A constant without dimensions: int64, or float32."""
        return self.constant(np.asarray(value, np.int64 if isinstance(value, int) else np.float32))

    def staged(self, size: int, *vectors: str) -> list[str]:
        """Hold back stored vectors until a stage of loading; see :meth:`_write_stages`.

        Args:
            size: Bytes of memory of what is unpacked from them.
            *vectors: Their names.

        Returns:
            Names of the same vectors, held back.
        """
        held = [self.op("Reshape", name, "") for name in vectors]
        self._staged.append((size, self._nodes[-len(vectors) :]))
        return held

    def _write_stages(self) -> list[Any]:
        """The nodes that the vectors of :meth:`staged` wait for, to be put before all others.

        onnxruntime folds constants in rounds, and frees what nothing uses any more only between two
        rounds. If all weights were unpacked in one, all values on the way would be in memory
        together. So each vector passes a ``Reshape`` to a shape, which is always [-1] and is known
        in the round of its stage only: a ``Shape`` of something that has the shape of the stage
        before. That one comes out of an ``If`` with an unknown condition, because the shapes behind
        all other nodes are inferred within the round. Once folded, nothing of this is left.
        """
        stages = self._stages()
        if not stages:
            return []
        written, self._nodes = self._nodes, []
        shapes = [self.ints(-1)]
        if max(stages):
            given = self._inputs[0]
            number = given.type.tensor_type.elem_type
            dtype = helper.tensor_dtype_to_np_dtype(number).type
            some = self.op("ReduceMax", given.name, keepdims=0)
            unknown = self.op("Cast", some, to=BOOL)
        for _ in range(max(stages)):
            size = self.op("Neg", shapes[-1])
            branches = {}
            for branch in ("then_branch", "else_branch"):
                inner = GraphBuilder(self.fresh(branch), outer=self)
                inner.output(f"{inner.name}/vector", inner.op("Expand", some, size), dtype, ["S"])
                branches[branch] = inner.graph()
            shapes.append(self.op("Neg", self.op("Shape", self.op("If", unknown, **branches))))
        for stage, (_, nodes) in zip(stages, self._staged, strict=True):
            for node in nodes:
                node.input[1] = shapes[stage]
        waits, self._nodes = self._nodes, written
        return waits

    def _stages(self) -> list[int]:
        """The stage of each item of ``_staged``: largest first, a share of the rest each."""
        sizes = [size for size, _ in self._staged]
        stages = [0] * len(sizes)
        left = total = sum(sizes)
        if total < STAGED_BYTES:
            return stages
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
            stage = math.floor(math.log(left / total) / math.log(1 - STAGE_SHARE))
            stages[index] = min(stage, STAGES - 1)
            left -= sizes[index]
        return stages

    def initializer(self, name: str, value: Array) -> str:
        """A stored array under a name of its own."""
        self._initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def sparse_constant(self, name: str, value: Array) -> str:
        """A stored array of which only what is not zero takes room; 8 bytes of index each.

        A node rather than the graph's own list of sparse tensors, which onnx's inference of shapes
        takes for numbers, and OpenVINO does not read (`findings/onnx_sparse_initializer_shape.sh`).
        """
        places = np.flatnonzero(value)
        values = numpy_helper.from_array(value.reshape(-1)[places], f"{name}/values")
        indices = numpy_helper.from_array(places.astype(np.int64), f"{name}/places")
        sparse = helper.make_sparse_tensor(values, indices, list(value.shape))
        self._nodes.append(helper.make_node("Constant", [], [name], name=name, sparse_value=sparse))
        return name

    def input(self, name: str, dtype: type[np.generic], shape: Shape) -> str:
        """Declare an input."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def known(self, name: str, dtype: type[np.generic], shape: Shape) -> None:
        """Say the shape of a value that onnxruntime cannot infer: it folds no unknown shapes."""
        self._known.append(_value_info(name, dtype, shape))

    def output(self, name: str, value: str, dtype: type[np.generic], shape: Shape) -> None:
        """Declare a value as an output under another name."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=self.fresh("output")))
        self._outputs.append(_value_info(name, dtype, shape))

    def graph(self) -> Any:
        """The graph, for a node that holds one."""
        waits = self._write_stages()
        return helper.make_graph(
            waits + self._nodes, self.name, self._inputs, self._outputs, self._initializers,
            value_info=self._known,
        )  # fmt: skip

    def model(self, metadata: Mapping[str, str]) -> bytes:
        """The file.

        Args:
            metadata: Kept in the file, in this order.

        Raises:
            ValueError: If the file would be larger than the 2 GB that protobuf allows.
        """
        model = helper.make_model(
            self.graph(),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="omnisparse",
            producer_version=__version__,
        )
        for key, value in metadata.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value
        size = model.ByteSize()
        if size >= onnx.checker.MAXIMUM_PROTOBUF:
            raise ValueError(
                f"{self.name}.onnx would have {size:,} bytes; ONNX files hold at most "
                f"{onnx.checker.MAXIMUM_PROTOBUF:,}: export with --packed, or extract a smaller net"
            )
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def _value_info(name: str, dtype: type[np.generic], shape: Shape) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, list(shape))


BOOL = int(TensorProto.BOOL)
"""ONNX's number for truth values."""
FLOAT = int(TensorProto.FLOAT)
"""ONNX's number for float32, as ``Cast`` wants it."""
INT64 = int(TensorProto.INT64)
"""ONNX's number for int64."""
