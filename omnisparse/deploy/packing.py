"""Chooses a packing for a stored matrix and packs it: for each kernel the arrays it reads."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.bitmask import count_bits, pack_mask
from omnisparse.artifact.packed import PackedTensor
from omnisparse.artifact.tensorfile import Array
from omnisparse.deploy.cost import Kind, fastest, panel_width
from omnisparse.deploy.native import LEVELS, NUMBA, kernels
from omnisparse.deploy.sparse_kernels import PackedMatrix, Room

MAX_COLUMNS = 1 << 16
"""Columns that 16 bits can tell apart; wider matrices are kept dense."""

DENSE_HEIGHT = 16
"""Rows of a band of a dense matrix."""


def pack(tensor: PackedTensor, kind: Kind | None = None, room: Room | None = None) -> PackedMatrix:
    """A stored matrix as the kernels read it.

    Args:
        tensor: A matrix of an artifact.
        kind: How to pack it, for tests and measurements; None for what is fastest here.
        room: Where its arrays lie; None for a room of its own.

    Raises:
        ValueError: If the matrix cannot be packed so.
    """
    library, level = kernels()
    room = room or Room()
    if tensor.packing == "block" and tensor.block in ((8, 1), (16, 1)):
        height, kept = tensor.block[0], int(count_bits(_bits(tensor)).sum())
    elif tensor.packing == "dense":  # seldom thinned: it is counted before it is taken apart
        height, kept = 0, sum(int(np.count_nonzero(_sizes(rows))) for rows in tensor.row_chunks())
    else:
        tensor = _masked(tensor)
        height, kept = 0, tensor.values.size
    on = None if library is None and level != NUMBA else level
    chosen = kind or fastest(tensor.shape, kept, height, tensor.values.itemsize, on)
    if chosen == "dense":
        return _pack_dense(tensor, room)
    if not height:
        tensor = _masked(tensor)
    if tensor.shape[1] > MAX_COLUMNS or (chosen == "block") != bool(height):
        raise ValueError(f"{tensor.fqn}: a {tensor.packing} matrix cannot be packed as {chosen}")
    if chosen == "block":
        return _pack_blocks(tensor, room)
    packers = {"panel": _pack_panels, "slice": _pack_slices, "csr": _pack_rows}
    return packers[chosen](tensor, room)


def _bits(tensor: PackedTensor) -> npt.NDArray[np.uint8]:
    assert tensor.bits is not None
    return tensor.bits


def _sizes(values: Array) -> Array:
    """Values of which zeros are zero bits: of bfloat16, the sign of minus zero does not count."""
    return values & 0x7FFF if values.dtype == np.uint16 else values


def _masked(tensor: PackedTensor) -> PackedTensor:
    """The matrix with a bit for each weight."""
    if tensor.packing == "bitmask":
        return tensor
    bits, values = [], []
    for rows in tensor.row_chunks():
        mask = _sizes(rows) != 0
        bits.append(pack_mask(mask))
        values.append(rows[mask])
    return replace(
        tensor,
        packing="bitmask",
        block=(1, 1),
        bits=np.concatenate(bits),
        values=np.concatenate(values),
    )


def _pack_dense(tensor: PackedTensor, room: Room) -> PackedMatrix:
    rows, columns = tensor.shape
    bands = -(-rows // DENSE_HEIGHT)
    values = room.empty((bands, columns, DENSE_HEIGHT), tensor.values.dtype)
    at = 0
    for chunk in tensor.row_chunks(DENSE_HEIGHT):
        count = -(-len(chunk) // DENSE_HEIGHT)
        if len(chunk) % DENSE_HEIGHT:
            chunk = np.pad(chunk, ((0, -len(chunk) % DENSE_HEIGHT), (0, 0)))
        bandwise = chunk.reshape(count, DENSE_HEIGHT, columns).swapaxes(1, 2)
        values[at : at + count] = bandwise
        at += count
    offsets = np.arange(bands + 1, dtype=np.int32) * columns
    return PackedMatrix(rows, columns, "dense", DENSE_HEIGHT, values, offsets, scale=tensor.scale)


def _pack_blocks(tensor: PackedTensor, room: Room) -> PackedMatrix:
    (rows, columns), height = tensor.shape, tensor.block[0]
    bits, stored = _bits(tensor), tensor.values
    offsets, indices = _columns(bits, columns, room)
    values = room.empty((int(offsets[-1]), height), stored.dtype)
    cut = rows % height
    whole = int(offsets[-2] if cut else offsets[-1])
    values[:whole].reshape(-1)[:] = stored[: whole * height]
    if cut:
        values[whole:] = 0
        values[whole:, :cut] = stored[whole * height :].reshape(-1, cut)
    return PackedMatrix(
        rows, columns, "block", height, values, offsets, indices, scale=tensor.scale
    )


def _pack_rows(tensor: PackedTensor, room: Room) -> PackedMatrix:
    rows, columns = tensor.shape
    offsets, indices = _columns(_bits(tensor), columns, room)
    values = room.empty(tensor.values.shape, tensor.values.dtype)
    values[:] = tensor.values
    return PackedMatrix(rows, columns, "csr", 0, values, offsets, indices, scale=tensor.scale)


def _columns(
    bits: npt.NDArray[np.uint8], columns: int, room: Room
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint16]]:
    """Where each row starts among the set bits, and their columns."""
    library, _ = kernels()
    if library is None:
        kept = np.unpackbits(bits, axis=1, count=columns, bitorder="little").view(np.bool_)
        sums = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
        return sums.astype(np.int32), kept.nonzero()[1].astype(np.uint16)
    bits = np.ascontiguousarray(bits)
    offsets = np.empty(len(bits) + 1, np.int32)
    indices = room.empty((int(count_bits(bits).sum()),), np.uint16)
    library.omni_columns(
        len(bits), columns, bits.ctypes.data, offsets.ctypes.data, indices.ctypes.data
    )
    return offsets, indices


def _pack_panels(tensor: PackedTensor, room: Room) -> PackedMatrix:
    library = _avx512(tensor, "panels")
    (rows, columns), stored = tensor.shape, np.ascontiguousarray(tensor.values)
    width = panel_width(stored.size / math.prod(tensor.shape))
    groups, bits = -(-rows // 4), np.ascontiguousarray(_bits(tensor))
    offsets = np.empty(groups + 1, np.int32)
    counts = np.empty((groups, -(-columns // width), 4), np.uint8)
    places = room.empty(stored.shape, np.uint8)
    values = room.empty(stored.shape, stored.dtype)
    arrays = (bits, stored, offsets, counts, places, values)
    library.omni_panels(
        rows, columns, width, stored.itemsize, *(array.ctypes.data for array in arrays)
    )
    return PackedMatrix(
        rows, columns, "panel", width, values, offsets,
        counts=counts, places=places, scale=tensor.scale,
    )  # fmt: skip


def _avx512(tensor: PackedTensor, what: str) -> ctypes.CDLL:
    library, level = kernels()
    if library is None or LEVELS[level] != "avx512":
        raise ValueError(f"{tensor.fqn}: {what} need AVX-512")
    return library


def _pack_slices(tensor: PackedTensor, room: Room) -> PackedMatrix:
    library = _avx512(tensor, "slices")
    (rows, columns), stored = tensor.shape, np.ascontiguousarray(tensor.values)
    starts, found = _columns(_bits(tensor), columns, Room())
    groups = -(-rows // 16)
    offsets, counts = np.empty(groups + 1, np.int32), np.empty(groups, np.uint8)
    given = (array.ctypes.data for array in (starts, found, stored, offsets, counts))
    sizes = (rows, stored.itemsize, *given)
    library.omni_slices(*sizes, None, None, None)
    visits = np.diff(offsets)
    indices = room.empty((int(visits.sum()),), np.uint16)
    slots = 16 * int((visits * counts).sum())
    places, values = room.empty((slots,), np.uint8), room.empty((slots,), stored.dtype)
    library.omni_slices(*sizes, *(array.ctypes.data for array in (indices, places, values)))
    return PackedMatrix(
        rows, columns, "slice", 16, values, offsets, indices, counts, places, tensor.scale
    )
