"""Reading the tensors of ``model.safetensors``, with every statement about them checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnisparse.artifact import bitmask
from omnisparse.artifact.bitmask import Block
from omnisparse.artifact.layout import Packing, prefix_of
from omnisparse.artifact.precision import FLOAT_DTYPES, FloatArray, restore_values
from omnisparse.artifact.tensorfile import Array, Field, TensorFile
from omnisparse.errors import FormatError


@dataclass(frozen=True)
class Decoded:
    """One tensor that was read: ``packing``, stored ``dtype`` tag, and the bytes of its fields.

    ``block`` is the block of its mask; (1, 1) for one mask bit per weight or no mask.
    """

    fqn: str
    array: Array
    packing: Packing
    dtype: str
    num_bytes: int
    block: Block = (1, 1)


def keys_of(fqn: str, fields: Mapping[str, Field]) -> list[str]:
    """Keys of the fields that hold ``fqn``.

    Raises:
        FormatError: If the tensor is missing, or stored twice.
    """
    prefix = prefix_of(fqn)
    layouts: dict[Packing, Sequence[str]] = {
        "bitmask": ("shape", "row_offsets", "compressed", "bitmask"),
        "block": ("shape", "block", "compressed", "block_bitmask"),
    }
    found: list[list[str]] = [[fqn]] if fqn in fields else []
    for suffixes in layouts.values():
        keys = [f"{prefix}.{suffix}" for suffix in suffixes]
        if keys[-1] in fields:
            missing = [key for key in keys if key not in fields]
            if missing:
                raise FormatError(f"{fqn}: field {missing[0]} is missing")
            found.append(keys)
    if len(found) != 1:
        raise FormatError(f"{fqn} is {'missing' if not found else 'stored more than once'}")
    scale = f"{prefix}.scale"
    values = fields[found[0][0] if len(found[0]) == 1 else found[0][2]]
    if values.dtype == "I8" and scale in fields:
        found[0].append(scale)
    return found[0]


def decode(file: TensorFile, fqn: str) -> Decoded:
    """One tensor of the file, with every statement about it checked; floats become float32.

    Allocates at most 32 bytes per byte of the file (one mask bit is one float32 weight), and in a
    block layout 32 times the weights of a block, at most 512.

    Raises:
        FormatError: If fields contradict each other, or a value is not finite.
    """
    keys = keys_of(fqn, file.fields)
    num_bytes = sum(file.fields[key].num_bytes for key in keys)
    scale = f"{prefix_of(fqn)}.scale" if keys[-1].endswith(".scale") and len(keys) > 1 else None
    try:
        if keys[0] == fqn:
            field = file.fields[fqn]
            array = _decode_dense(file, field, scale)
            return Decoded(fqn, array, "dense", field.dtype, num_bytes)
        field = file.fields[keys[2]]
        packing: Packing = "block" if keys[1].endswith(".block") else "bitmask"
        block = read_block(file, keys[1]) if packing == "block" else (1, 1)
        array = _decode_packed(file, keys, block if packing == "block" else None, scale)
    except FormatError as error:
        raise FormatError(f"{fqn}: {error}") from None
    return Decoded(fqn, array, packing, field.dtype, num_bytes, block)


def read_block(file: TensorFile, key: str) -> Block:
    """Shape of a mask's blocks; raises FormatError where it is out of range."""
    field = file.fields[key]
    if field.dtype != "I64" or field.shape != (2,):
        raise FormatError("block must be I64 [2]")
    block = (int(file.array(key)[0]), int(file.array(key)[1]))
    if min(block) < 1 or max(block) > 16 or math.prod(block) > 16:
        raise FormatError("block is out of range")
    return block


def read_scale(file: TensorFile, key: str, rows: int) -> FloatArray:
    """A positive finite scale for each of `rows` rows; raises FormatError otherwise."""
    field = file.fields[key]
    if field.dtype != "F32" or field.shape != (rows,):
        raise FormatError(f"scale must be F32 [{rows}]")
    scales = np.array(file.array(key), np.float32)
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise FormatError("scale is not positive and finite")
    return scales


def _finite(values: FloatArray) -> FloatArray:
    if not np.isfinite(values).all():
        raise FormatError("a value is not finite")
    return values


def _decode_dense(file: TensorFile, field: Field, scale: str | None) -> Array:
    array = file.array(field.key)
    if field.dtype not in FLOAT_DTYPES and scale is None:
        if field.dtype == "BOOL" and (array.view(np.uint8) > 1).any():
            raise FormatError("a boolean value is neither 0 nor 1")
        return np.array(array)
    values = np.array(restore_values(array, field.dtype), np.float32)
    if scale is not None:
        if values.ndim < 2:
            raise FormatError("scale beside a vector")
        scales = read_scale(file, scale, field.shape[0])
        with np.errstate(over="ignore"):
            values *= scales.reshape(-1, *[1] * (values.ndim - 1))
    return _finite(values)


def _decode_packed(
    file: TensorFile, keys: Sequence[str], block: Block | None, scale: str | None
) -> FloatArray:
    shape_field, _, values_field, mask_field = (file.fields[key] for key in keys[:4])
    if shape_field.dtype != "I64" or shape_field.shape != (2,):
        raise FormatError("shape must be I64 [2]")
    rows, columns = (int(size) for size in file.array(keys[0]))
    if not (0 < rows < 2**31 and 0 < columns < 2**31):
        raise FormatError("shape is out of range")
    legal = (*FLOAT_DTYPES, "I8") if scale else FLOAT_DTYPES
    if values_field.dtype not in legal or len(values_field.shape) != 1:
        raise FormatError("compressed must be a vector of floating-point values, or I8 with scale")
    if mask_field.dtype != "U8" or len(mask_field.shape) != 2:
        raise FormatError("the mask must be U8 with 2 dimensions")
    bits = file.array(keys[3])
    stored = file.array(keys[2])
    values = _finite(restore_values(stored, values_field.dtype))
    if block is None:
        dense = _decode_bitmask(file, keys[1], bits, values, (rows, columns))
    else:
        dense = bitmask.unpack_blocks(bits, values, (rows, columns), block)
    if scale is not None:
        with np.errstate(over="ignore"):
            dense *= read_scale(file, scale, rows)[:, None]
        _finite(dense)
    return dense


def _decode_bitmask(
    file: TensorFile, offsets_key: str, bits: Array, values: FloatArray, shape: tuple[int, int]
) -> FloatArray:
    if (values == 0).any():
        raise FormatError("a stored value is zero")
    dense = bitmask.unpack_rows(bits, values, shape)
    field = file.fields[offsets_key]
    if field.dtype != "I64" or field.shape not in ((0,), (shape[0],)):
        raise FormatError(f"row_offsets must be I64 [0] or [{shape[0]}]")
    if field.shape == (shape[0],):
        counts = bitmask.count_bits(bits)
        if not np.array_equal(file.array(offsets_key), np.cumsum(counts) - counts):
            raise FormatError("row_offsets contradict the bitmask")
    return dense
