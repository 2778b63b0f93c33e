"""The bit-mask codec: a matrix as one bit per weight (or per block of weights) and the kept values.

Two layouts of a matrix ``[R, C]`` whose name without a trailing ``.weight`` is ``P``:

* ``bitmask`` (any precision), equal in every field to the ``sparse-bitmask`` format of
  compressed-tensors 0.14.0.1: ``P.shape`` int64 [2]; ``P.compressed`` [nnz], row-major;
  ``P.bitmask`` uint8 [R, ceil(C/8)], least significant bit first; ``P.row_offsets`` int64 [R], the
  exclusive running sum of row counts. Names which do not end in ``.weight`` (LSTM matrices) have an
  *empty* ``row_offsets``: no reader uses it, and it would be 1 % of a packed LSTM.
* ``block`` (ours, for masks of whole ``bR x bC`` blocks): ``P.shape``; ``P.block`` int64 [2];
  ``P.block_bitmask`` uint8 [ceil(R/bR), ceil(ceil(C/bC)/8)], a bit per block; ``P.compressed``,
  the values of one block after the other in row-major order of blocks, row-major within a block
  (for 8x1: eight consecutive output units, as a SIMD kernel needs them). A block cut by the edge of
  the matrix stores only the values inside.

int8 adds ``P.scale`` float32 [R]. A bit is set if the float32 weight is not zero before rounding.
Rounding never makes a kept weight zero (:mod:`omnisparse.artifact.precision`). So the numbers of
set bits, of stored values and of non-zeros in the restored matrix are equal. In a block layout a
stored value may be zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from einops import rearrange

from omnisparse.artifact.precision import FloatArray
from omnisparse.artifact.tensorfile import Array
from omnisparse.errors import FormatError

Bits = npt.NDArray[np.uint8]
Block = tuple[int, int]

MAX_BLOCK_WEIGHTS = 16
"""Largest legal block; it limits the memory that a malicious file (one bit per block) can claim."""

CHUNK_WEIGHTS = 1 << 18
"""Weights processed at a time: temporaries stay in the cache."""

_POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def check_block(block: Block) -> None:
    """Raises ValueError unless ``block`` is a legal pair of positive ints."""
    if len(block) != 2 or min(block) < 1 or math.prod(block) > MAX_BLOCK_WEIGHTS:
        raise ValueError(f"block {block} is not legal: 1x1 to {MAX_BLOCK_WEIGHTS} weights")


def count_bits(bits: Bits) -> npt.NDArray[np.int64]:
    """Set bits of each row: [R, N] uint8 to [R] int64."""
    bitwise_count: Any = getattr(np, "bitwise_count", None)
    counts = bitwise_count(bits) if bitwise_count is not None else _POPCOUNT[bits]
    return np.asarray(counts.sum(axis=1, dtype=np.int64))


def _row_chunks(rows: int, columns: int) -> range:
    return range(0, rows, max(1, CHUNK_WEIGHTS // max(1, columns)))


def pack_mask(mask: npt.NDArray[np.bool_]) -> Bits:
    """Mask bits of rows: [R, C] bool to [R, ceil(C/8)] uint8."""
    return np.packbits(mask, axis=1, bitorder="little")


def unpack_rows(bits: Bits, values: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """The dense matrix of :func:`pack_mask` and the kept values in row-major order.

    Raises:
        FormatError: If the bits do not match the shape or the number of values, or a pad bit is
            set.
    """
    rows, columns = shape
    if bits.shape != (rows, -(-columns // 8)):
        raise FormatError("bitmask does not match the shape")
    if columns % 8 and (bits[:, -1] >> (columns % 8)).any():
        raise FormatError("bitmask has pad bits set")
    counts = count_bits(bits)
    if int(counts.sum()) != values.size:
        raise FormatError(f"bitmask keeps {int(counts.sum())} weights, {values.size} are stored")
    dense = np.zeros(shape, np.float32)
    at = 0
    steps = _row_chunks(rows, columns)
    for start in steps:
        rows_here = slice(start, start + steps.step)
        kept = np.unpackbits(bits[rows_here], axis=1, count=columns, bitorder="little")
        places = np.flatnonzero(kept.view(np.bool_))
        dense[rows_here].reshape(-1)[places] = values[at : at + places.size]
        at += places.size
    return dense


def _block_grid(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def block_mask_shape(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    """Shape of ``P.block_bitmask``."""
    rows, columns = _block_grid(shape, block)
    return rows, -(-columns // 8)


def _blocks_of(weight: Array, block: Block) -> tuple[Array, npt.NDArray[np.bool_]]:
    """A matrix as [blocks, bR * bC], row-major over blocks, and the mask of values inside it."""
    bands, blocks = _block_grid((weight.shape[0], weight.shape[1]), block)
    inside = np.zeros((bands * block[0], blocks * block[1]), np.bool_)
    inside[: weight.shape[0], : weight.shape[1]] = True
    padded = np.zeros(inside.shape, weight.dtype)
    padded[: weight.shape[0], : weight.shape[1]] = weight

    def arrange(array: Array) -> Array:
        return rearrange(array, "(band i) (block j) -> (band block) (i j)", i=block[0], j=block[1])

    return arrange(padded), arrange(inside)


def _matrix_of(blocks: Array, shape: tuple[int, int], block: Block) -> Array:
    """The matrix from its blocks, the inverse of :func:`_blocks_of`."""
    columns = _block_grid(shape, block)[1]
    whole = rearrange(
        blocks, "(band block) (i j) -> (band i) (block j)", block=columns, i=block[0], j=block[1]
    )
    return whole[: shape[0], : shape[1]]


def pack_blocks(weight: Array, block: Block) -> tuple[Bits, Array]:
    """Block mask and values of a matrix whose zeros come in whole blocks.

    Args:
        weight: [R, C], any dtype (already rounded for int8).
        block: Rows and columns of a block.

    Returns:
        bits of :func:`block_mask_shape`, and the values of every block that is not all zero.
    """
    shape = (weight.shape[0], weight.shape[1])
    bits = np.empty(block_mask_shape(shape, block), np.uint8)
    pieces: list[Array] = []
    bands = _row_chunks(bits.shape[0], block[0] * shape[1])
    for start in bands:
        stop = start + bands.step
        blocks, inside = _blocks_of(weight[start * block[0] : stop * block[0]], block)
        kept = (blocks != 0).any(axis=1)
        grid = kept.reshape(-1, _block_grid(shape, block)[1])
        bits[start:stop] = np.packbits(grid, axis=1, bitorder="little")
        pieces.append(blocks[kept][inside[kept]])
    return bits, np.concatenate([piece.reshape(-1) for piece in pieces])


def unpack_blocks(bits: Bits, values: Array, shape: tuple[int, int], block: Block) -> Array:
    """The dense matrix of :func:`pack_blocks`, in the dtype of ``values``.

    Raises:
        FormatError: If the bits do not match the shape or the number of values, or a pad bit is
            set.
    """
    if bits.shape != block_mask_shape(shape, block):
        raise FormatError("block bitmask does not match the shape")
    columns = _block_grid(shape, block)[1]
    if columns % 8 and (bits[:, -1] >> (columns % 8)).any():
        raise FormatError("block bitmask has pad bits set")
    if int(count_bits(bits).sum()) > values.size:  # a block holds at least one value
        raise FormatError("block bitmask keeps more blocks than there are values")
    dense = np.zeros(shape, values.dtype)
    at = 0
    bands = _row_chunks(bits.shape[0], block[0] * shape[1])
    for start in bands:
        stop = start + bands.step
        rows = dense[start * block[0] : stop * block[0]]
        blocks, inside = _blocks_of(rows, block)
        kept = np.unpackbits(bits[start:stop], axis=1, count=columns, bitorder="little")
        chosen = inside & kept.reshape(-1, 1).view(np.bool_)
        end = at + int(chosen.sum())
        if end > values.size:
            raise FormatError("block bitmask keeps more weights than are stored")
        blocks[chosen] = values[at:end]
        at = end
        rows[:] = _matrix_of(blocks, (rows.shape[0], shape[1]), block)
    if at != values.size:
        raise FormatError(f"block bitmask keeps {at} weights, {values.size} are stored")
    return dense
