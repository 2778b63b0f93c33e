"""How the weights of a net are stored in an ONNX file: dense, packed or sparse, in any precision.

Every layout restores the same float32 weights with standard operators of constants, which
onnxruntime computes once while it loads a file ("constant folding"); what runs afterwards is the
dense net.

Packed: the values that are not zero, and the distance of each from the one before, in 4 or 8 bits.
``CumSum`` of the distances is where the values belong; ``MaxUnpool`` puts them there, zeros
elsewhere, in the shape of an LSTM's matrix, without another copy. A bit mask would be as small, but
the operator that finds its set bits (``NonZero``) is never folded: the number of places is not
known from shapes, so it would run at every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.precision import (
    FloatArray,
    Precision,
    restore_values,
    round_values,
    row_scales,
)
from omnisparse.deploy.factored import copies_of, factors_of, projection_of
from omnisparse.deploy.onnx_graph import FLOAT, INT64, Array, GraphBuilder

Layout = Literal["dense", "packed", "sparse"]
"""All weights; a bit mask and those that are not zero; ONNX's own sparse tensors."""

DTYPES: dict[Precision, str] = {"fp32": "F32", "fp16": "F16", "int8": "I8"}
"""Precisions that an export may have, and the artifact's names for their numbers."""

GAP_BITS = (4, 8)
"""Bits of a distance between two weights that are not zero; the smaller file is taken."""

INT32 = 6
"""ONNX's number for int32."""

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

    def factors(self, name: str) -> tuple[str, str] | None:
        """Names of the two matrices whose product a matrix is; None where it is stored as it is.

        The second may be that of another matrix: see :meth:`projection`.
        """
        pair = factors_of(name)
        return (pair[0], self.projection(name) or pair[1]) if pair[0] in self.state else None

    def projection(self, name: str) -> str | None:
        """The right factor that a matrix shares with the layer before it, if it does."""
        return projection_of(name, self.state)

    def gates(self, name: str) -> int:
        """Equal blocks of rows of a matrix that are a product each; 1 for all others."""
        pair = self.factors(name)
        if pair is None or self.projection(name) is not None:
            return 1
        return int(self.state[pair[1]].shape[0]) // int(self.state[pair[0]].shape[1])

    def copies(self, name: str) -> int:
        """Outputs that a matrix with a shared factor reads."""
        left, right = (self.state[part] for part in self.factors(name) or ())
        return copies_of(name, left.shape[1], right.shape[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, of a product too."""
        pair = self.factors(name)
        if pair is None:
            return self.state[name].shape
        return self.state[pair[0]].shape[0], self.state[pair[1]].shape[1]

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
        if self.layout == "packed" and kept:
            packed = _pack(values)
            if packed is not None and packed.nbytes + _NODE_BYTES < values.nbytes:
                return _restored(graph, packed.write(graph, label, values.shape), scales)
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
        stored = graph.sparse_constant(label, values)
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


@dataclass(frozen=True)
class _Packed:
    """An array ``[..., R, C]`` whose values stand in R rows of as many columns as they need."""

    gaps: npt.NDArray[np.uint8]
    """Distances, in ``bits`` bits, 0 where the values before are repeated to fill up."""
    values: Array
    """As many."""
    bits: int
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return self.gaps.size * self.bits // 8 + self.values.nbytes

    def write(self, graph: GraphBuilder, label: str, shape: tuple[int, ...]) -> str:
        """The nodes that restore it, float32."""
        gaps, bits = self.gaps, self.bits
        steps, floats = graph.staged(
            4 * math.prod(shape),
            graph.initializer(f"{label}/gaps", gaps if bits == 8 else gaps[::2] | gaps[1::2] << 4),
            graph.initializer(f"{label}/values", self.values),
        )
        if bits == 4:
            shifts = graph.constant(np.array([[0, 4]], np.uint8))
            pairs = graph.op("Unsqueeze", steps, graph.ints(1))
            pairs = graph.op("BitShift", pairs, shifts, direction="RIGHT")
            pairs = graph.op("BitwiseAnd", pairs, graph.constant(np.array(15, np.uint8)))
            steps = graph.op("Reshape", pairs, graph.ints(-1))
        places = graph.op("CumSum", graph.op("Cast", steps, to=INT32), graph.scalar(0))
        by_row = graph.ints(1, self.rows, -1)
        places = graph.op("Cast", graph.op("Reshape", places, by_row), to=INT64)
        floats = graph.op("Reshape", floats, by_row)
        if self.values.dtype != np.float32:
            floats = graph.op("Cast", floats, to=FLOAT)
        room = (1, self.rows, shape[-1])
        dense = graph.op("MaxUnpool", floats, places, graph.ints(*room), kernel_shape=[1])
        graph.known(dense, np.float32, room)
        return dense if shape == room else graph.op("Reshape", dense, graph.ints(*shape))


def _pack(values: Array) -> _Packed | None:
    """The smaller way to pack an array that is not all zeros; None if none has room for it."""
    columns = values.shape[-1]
    rows = values.size // columns
    ways = []
    for bits in GAP_BITS:
        gaps, kept = _gaps(values.reshape(-1), bits)
        width = -(-gaps.size // rows)
        width += bits == 4 and rows * width % 2  # two distances are a byte
        if width <= columns:
            lacking = rows * width - gaps.size
            gaps = np.append(gaps, np.zeros(lacking, np.uint8))
            kept = np.append(kept, np.repeat(kept[-1:], lacking))
            ways.append(_Packed(gaps, kept, bits, rows))
    return min(ways, key=lambda way: way.nbytes, default=None)


def _gaps(flat: Array, bits: int) -> tuple[npt.NDArray[np.uint8], Array]:
    """Distances between values that are not zero, and the values.

    A distance that ``bits`` cannot hold is passed in steps, each with a value of zero.
    """
    longest = (1 << bits) - 1
    places = np.flatnonzero(flat)
    distances = np.diff(places, prepend=0)
    steps = np.maximum(0, distances - 1) // longest  # that hold a zero
    ends = np.cumsum(steps + 1) - 1
    gaps = np.full(int(ends[-1]) + 1 if ends.size else 0, longest, np.uint8)
    kept = np.zeros(gaps.size, flat.dtype)
    gaps[ends] = distances - steps * longest
    kept[ends] = flat[places]
    return gaps, kept
