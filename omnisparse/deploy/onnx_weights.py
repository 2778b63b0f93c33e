"""How the weights of a net are stored in an ONNX file: dense, packed or sparse, in any precision.

Every layout restores the same float32 weights with standard operators of constants, which
onnxruntime computes once while it loads a file ("constant folding"); what runs afterwards is the
dense net.

Packed: a bit per weight (least significant bit first) and the values that are not zero.
``BitwiseAnd`` of each byte with 1, 2, 4, ... 128, then ``NonZero``, gives the places of the values;
``MaxUnpool`` puts them there, zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.precision import (
    FloatArray,
    Precision,
    restore_values,
    round_values,
    row_scales,
)
from omnisparse.deploy.onnx_graph import FLOAT, Array, GraphBuilder

Layout = Literal["dense", "packed", "sparse"]
"""All weights; a bit mask and those that are not zero; ONNX's own sparse tensors."""

DTYPES: dict[Precision, str] = {"fp32": "F32", "fp16": "F16", "int8": "I8"}
"""Precisions that an export may have, and the artifact's names for their numbers."""

UNPACKED_AT_ONCE = 1 << 22
"""Weights of a packed matrix that one chain of nodes unpacks: bounds the memory of loading."""

_NODE_BYTES = 1000
"""About what the nodes that unpack one piece take in a file: small matrices stay as they are."""

Transform = Callable[[Array], Array]
"""Moves rows and axes; works on ``[R, C]`` and on ``[R, 1]`` alike."""


@dataclass(frozen=True)
class _Stored:
    """A rounded tensor."""

    values: Array
    """float32, float16 or int8."""

    scales: FloatArray | None
    """``[R, 1]``, of int8 matrices."""

    @property
    def restored(self) -> FloatArray:
        """What a reader gets."""
        dtype = {"float32": "F32", "float16": "F16", "int8": "I8"}[str(self.values.dtype)]
        floats = restore_values(self.values, dtype)
        return floats if self.scales is None else floats * self.scales


@dataclass
class WeightStore:
    """The weights of a net, rounded once, and the ways into a graph.

    Attributes:
        state: Arrays by name, float32.
        layout: How matrices are stored.
        precision: ``fp32``, ``fp16`` or ``int8`` (matrices, a scale per row as in the artifact).
    """

    state: Mapping[str, FloatArray]
    layout: Layout = "dense"
    precision: Precision = "fp32"
    _rounded: dict[str, _Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(DTYPES)}")

    def restored(self) -> dict[str, FloatArray]:
        """All weights as a reader of the files gets them."""
        return {name: self._round(name).restored for name in self.state}

    def vector(self, graph: GraphBuilder, *names: str, transform: Transform | None = None) -> str:
        """Place vectors, joined, as float32 or float16."""
        joined = np.concatenate([self._round(name).restored for name in names])
        joined = joined if transform is None else transform(joined)
        name = names[0] if len(names) == 1 else f"{names[0]}+"
        return self._place_values(graph, graph.fresh(name), self._narrowed(joined), None)

    def matrix(self, graph: GraphBuilder, name: str, transform: Transform) -> str:
        """Place a matrix ``[R, C]`` after ``transform``."""
        stored = self._round(name)
        values = np.ascontiguousarray(transform(stored.values))
        scales = None if stored.scales is None else transform(stored.scales)
        label = graph.fresh(name)
        kept = int(np.count_nonzero(values))
        if self.layout == "sparse" and kept * (8 + values.itemsize) < values.nbytes:
            return self._place_sparse(graph, label, values, scales)
        packed = values.size // 8 + kept * values.itemsize + _NODE_BYTES
        if self.layout == "packed" and packed < values.nbytes:
            return _restored(graph, _unpacked(graph, label, values), scales)
        return self._place_values(graph, label, values, scales)

    def _place_values(
        self, graph: GraphBuilder, label: str, values: Array, scales: FloatArray | None
    ) -> str:
        stored = graph.initializer(label, values)
        if values.dtype != np.float32:
            stored = graph.op("Cast", stored, to=FLOAT)
        return _restored(graph, stored, scales)

    def _place_sparse(
        self, graph: GraphBuilder, label: str, values: Array, scales: FloatArray | None
    ) -> str:
        # int8 is restored here: onnxruntime's sparse tensors are wanted in floats.
        if scales is not None:
            values = values.astype(np.float32) * scales
        stored = graph.sparse_initializer(label, values)
        return stored if values.dtype == np.float32 else graph.op("Cast", stored, to=FLOAT)

    def _narrowed(self, values: FloatArray) -> Array:
        """A vector as it is stored: it is already rounded, so this changes no number."""
        return values if self.precision == "fp32" else values.astype(np.float16)

    def _round(self, name: str) -> _Stored:
        if name not in self._rounded:
            self._rounded[name] = self._rounded_tensor(name)
        return self._rounded[name]

    def _rounded_tensor(self, name: str) -> _Stored:
        value = np.ascontiguousarray(self.state[name], np.float32)
        try:
            if self.precision == "int8" and value.ndim == 2:
                scales = row_scales(value)[:, None]
                return _Stored(round_values(value, "int8", scales), scales)
            narrow: Precision = "fp32" if self.precision == "fp32" else "fp16"
            return _Stored(round_values(value, narrow), None)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _restored(graph: GraphBuilder, floats: str, scales: FloatArray | None) -> str:
    return floats if scales is None else graph.op("Mul", floats, graph.constant(scales))


def _unpacked(graph: GraphBuilder, label: str, values: Array) -> str:
    """A packed array, unpacked by nodes: float32 in the shape of ``values``."""
    flat, pieces = values.reshape(-1), []
    for start in range(0, flat.size, UNPACKED_AT_ONCE):
        piece = flat[start : start + UNPACKED_AT_ONCE]
        pieces.append(_unpacked_piece(graph, f"{label}/{start}", piece))
    joined = pieces[0] if len(pieces) == 1 else graph.op("Concat", *pieces, axis=2)
    return graph.op("Reshape", joined, graph.ints(*values.shape))


def _unpacked_piece(graph: GraphBuilder, label: str, flat: Array) -> str:
    """A packed vector, unpacked by nodes: ``[1, 1, N]`` float32."""
    kept: npt.NDArray[np.bool_] = flat != 0
    packed = np.packbits(kept, bitorder="little").reshape(-1, 1)
    bits = graph.initializer(f"{label}/bits", packed)
    stored: Any = graph.initializer(f"{label}/values", flat[kept].reshape(1, 1, -1))
    powers = graph.constant((1 << np.arange(8)).astype(np.uint8).reshape(1, 8))
    flags = graph.op("Reshape", graph.op("BitwiseAnd", bits, powers), graph.ints(-1))
    places = graph.op("Unsqueeze", graph.op("NonZero", flags), graph.ints(0))
    floats = stored if flat.dtype == np.float32 else graph.op("Cast", stored, to=FLOAT)
    size = graph.ints(1, 1, flat.size)
    return graph.op("MaxUnpool", floats, places, size, kernel_shape=[1], strides=[1])
