"""Matrices packed for products with one vector or a few; a thinned one has no dense copy.

The kernels are in ``sparse_kernels.c``; without them numpy does the same, slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.precision import restore_values
from omnisparse.artifact.tensorfile import Array
from omnisparse.deploy.cost import Kind
from omnisparse.deploy.native import NUMBA, MatrixStruct, kernels
from omnisparse.deploy.numba_kernels import numba_products
from omnisparse.sparsity.arrays import dtype_name

FloatArray = npt.NDArray[np.float32]

LANES = 16
"""Vectors that a kernel multiplies at once."""

MAX_RANK = 1 << 14
"""Columns of a left factor for which C has room."""

_PADDING = 64
"""Bytes that a kernel may read beyond the end."""

_KINDS: dict[Kind, int] = {"dense": 0, "block": 0, "csr": 1, "panel": 2, "slice": 3}
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3}
"""Types of values, by their number in C."""

_TAGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}

_PAGE = 2 << 20
_BLOCK = 32 << 20


class Room:
    """Memory for the arrays of one net, in pages of 2 MiB where the system has them.

    Reading it is up to a quarter faster than reading pages of 4 KiB, and a net that is read once a
    frame does little else. numpy asks for such pages too, but only for arrays above 4 MiB.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)
        self._taken = 0

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array at a multiple of 64 bytes, with 64 readable bytes behind its end."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        start = -(-self._taken // _PADDING) * _PADDING
        if start + size + _PADDING > len(self._block):
            self._block = _pages(max(_BLOCK, size + _PADDING))
            start = 0
        self._taken = start + size + _PADDING
        return self._block[start : start + size].view(dtype).reshape(shape)


def _pages(size: int) -> npt.NDArray[np.uint8]:
    """Zeros from the start of a large page on; none of it is in memory before it is written."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        room = np.zeros(size + _PADDING, np.uint8)
        return room[-room.ctypes.data % _PADDING :][:size]
    pages = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    room = np.frombuffer(pages, np.uint8)
    return room[-room.ctypes.data % _PAGE :][:size]


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix [R, C] as the kernels read it; from :func:`omnisparse.deploy.packing.pack`.

    Attributes:
        kind: ``dense`` and ``block``: bands of ``height`` rows, of each column ``height`` values;
            ``csr``: a column for each value; ``panel``: a place within ``height`` columns, of
            four rows at a time; ``slice``: sixteen rows at a time, which visit pairs of blocks of
            16 columns.
        values: Kept weights in their stored type; of slices also the zeros that fill visits.
        offsets: Where each band (in blocks), row or four rows (in values) or sixteen rows (in
            visits) start, and the end.
        indices: Columns of blocks or values, or the first block of each visit; None where all
            columns are there, and for panels.
        counts: Of panels [R / 4, panels, 4] values of each row in each panel; of slices [R / 16]
            values of a row at a visit.
        places: Column of each value within its panel, or modulo 32.
        scale: [R] factors of int8 values.
    """

    rows: int
    columns: int
    kind: Kind
    height: int
    values: Array
    offsets: npt.NDArray[np.int32]
    indices: npt.NDArray[np.uint16] | None = None
    counts: npt.NDArray[np.uint8] | None = None
    places: npt.NDArray[np.uint8] | None = None
    scale: FloatArray | None = None

    @property
    def width(self) -> int:
        """Inputs and outputs, which the kernels lay out side by side for several vectors."""
        return self.rows + self.columns

    @property
    def num_bytes(self) -> int:
        """Bytes that stay in memory, and that a product reads."""
        parts = (self.values, self.offsets, self.indices, self.counts, self.places, self.scale)
        return sum(part.nbytes for part in parts if part is not None)

    @cached_property
    def struct(self) -> MatrixStruct:
        """The matrix as C sees it."""
        _, level = kernels()

        def address(array: Array | None) -> int | None:
            return None if array is None else array.ctypes.data

        return MatrixStruct(
            self.rows, self.columns, _KINDS[self.kind], TYPES[dtype_name(self.values)],
            self.height, level, address(self.offsets), address(self.indices),
            address(self.counts), address(self.places), address(self.values), address(self.scale),
            None,
        )  # fmt: skip

    @cached_property
    def pointer(self) -> int:
        """Address of :attr:`struct`."""
        return ctypes.addressof(self.struct)

    def products(self, vectors: FloatArray, bias: FloatArray | None = None) -> FloatArray:
        """The product with each vector.

        Args:
            vectors: [N, C] float32.
            bias: [R], added to each product.

        Returns:
            [N, R] float32.
        """
        library, level = kernels()
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        count = len(vectors)
        result = np.zeros((count, self.rows), np.float32)
        if bias is not None:
            result += bias
        if library is None:
            product = self._numpy_product if level != NUMBA else self._numba_product
            for vector, row in zip(vectors, result, strict=True):
                row += product(vector)
        elif count == 1:
            library.omni_product(self.pointer, vectors.ctypes.data, result.ctypes.data)
        elif count:
            work = np.empty(LANES * self.width, np.float32)
            library.omni_products(
                self.pointer, count, vectors.ctypes.data, result.ctypes.data, work.ctypes.data
            )
        return result

    def _numba_product(self, vector: FloatArray) -> FloatArray:
        """One product by numba, of a dense matrix by numpy."""
        if self.indices is None:
            return self._numpy_product(vector)
        values = self.values
        if values.dtype not in (np.float32, np.int8):
            values = restore_values(values, _TAGS[dtype_name(values)])
        total = np.zeros((len(self.offsets) - 1) * max(1, self.height), np.float32)
        numba_products()[self.height](values, self.indices, self.offsets, vector, total)
        total = total[: self.rows]
        return total if self.scale is None else total * self.scale

    def _numpy_product(self, vector: FloatArray) -> FloatArray:
        """One product by numpy alone."""
        values = restore_values(self.values, _TAGS[dtype_name(self.values)])
        if self.kind == "csr":
            assert self.indices is not None
            total = _segment_sums(values * vector[self.indices], self.offsets)
        else:
            chosen = vector if self.indices is None else vector[self.indices]
            bands = len(self.offsets) - 1
            if self.indices is None:
                total = np.matmul(vector, values.reshape(bands, self.columns, self.height))
            else:
                products = values.reshape(-1, self.height) * chosen[:, None]
                total = _segment_sums(products, self.offsets)
            total = total.reshape(-1)[: self.rows]
        return total if self.scale is None else total * self.scale


@dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """A matrix [R, C] as a product of two, multiplied one after the other.

    Attributes:
        left: [R, r], r at most :data:`MAX_RANK`.
        right: [r, C].
    """

    left: PackedMatrix
    right: PackedMatrix
    kind = "factored"

    @property
    def rows(self) -> int:
        """R."""
        return self.left.rows

    @property
    def columns(self) -> int:
        """C."""
        return self.right.columns

    @property
    def width(self) -> int:
        """As of :class:`PackedMatrix`, of the wider factor."""
        return max(self.left.width, self.right.width)

    @property
    def num_bytes(self) -> int:
        """Bytes of both factors."""
        return self.left.num_bytes + self.right.num_bytes

    @cached_property
    def struct(self) -> MatrixStruct:
        """The left factor as C sees it, with the right one to be multiplied first."""
        struct = MatrixStruct.from_buffer_copy(self.left.struct)
        struct.first = self.right.pointer
        return struct

    @cached_property
    def pointer(self) -> int:
        """Address of :attr:`struct`."""
        return ctypes.addressof(self.struct)

    def products(self, vectors: FloatArray, bias: FloatArray | None = None) -> FloatArray:
        """As of :class:`PackedMatrix`."""
        return self.left.products(self.right.products(vectors), bias)


def _segment_sums(values: FloatArray, offsets: npt.NDArray[np.int32]) -> FloatArray:
    """Sums of the parts of ``values`` between offsets, zero where a part is empty."""
    sums = np.zeros((len(offsets) - 1, *values.shape[1:]), np.float32)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[filled] = np.add.reduceat(values, offsets[filled], axis=0)
    return sums
