"""A matrix as it lies in the file, every claim about it checked and no dense copy made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnisparse.artifact import bitmask
from omnisparse.artifact.bitmask import Bits, Block
from omnisparse.artifact.contents import WEIGHTS
from omnisparse.artifact.decoding import keys_of, read_block, read_scale
from omnisparse.artifact.layout import Packing, prefix_of
from omnisparse.artifact.precision import FLOAT_DTYPES, FloatArray, restore_values
from omnisparse.artifact.reading import (
    check_files,
    check_names,
    read_config,
    require_recogniser,
    trained_seconds_of,
)
from omnisparse.artifact.tensorfile import Array, TensorFile
from omnisparse.artifact.tensors import tag_of
from omnisparse.errors import FormatError


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of a file.

    ``values`` are as stored: float32, float16, uint16 (the bits of bfloat16) or int8, of shape
    ``shape`` where ``packing`` is ``dense``, else a vector of the kept ones. ``bits`` is the mask
    (see :mod:`omnisparse.artifact.bitmask`), ``scale`` a factor for each row of int8.
    """

    fqn: str
    shape: tuple[int, ...]
    packing: Packing
    dtype: str
    values: Array
    bits: Bits | None = None
    block: Block = (1, 1)
    scale: FloatArray | None = None

    def floats(self) -> FloatArray:
        """The whole tensor in float32, for what is small or never pruned."""
        assert self.packing == "dense"
        values = np.array(restore_values(self.values, self.dtype), np.float32)
        if self.scale is not None:
            values *= self.scale.reshape(-1, *[1] * (values.ndim - 1))
        return values

    def row_chunks(self, multiple: int = 1) -> Iterator[Array]:
        """The matrix in its stored type, a few dense rows at a time.

        Args:
            multiple: All chunks but the last have a multiple of so many rows.
        """
        rows, columns = self.shape
        step = max(1, bitmask.CHUNK_WEIGHTS // max(1, columns) // multiple) * multiple
        if self.packing == "dense" or self.bits is None:
            for start in range(0, rows, step):
                yield self.values[start : start + step]
            return
        height = self.block[0]
        step = -(-step // height) * height
        at = 0
        for start in range(0, rows, step):
            count = min(step, rows - start)
            bits = self.bits[start // height : -(-(start + count) // height)]
            if self.packing == "block":
                size = _num_values(bits, (count, columns), self.block)
                values = self.values[at : at + size]
                yield bitmask.unpack_blocks(bits, values, (count, columns), self.block)
            else:
                size = int(bitmask.count_bits(bits).sum())
                values = self.values[at : at + size]
                dense = np.zeros((count, columns), self.values.dtype)
                kept = np.unpackbits(bits, axis=1, count=columns, bitorder="little")
                dense[kept.view(np.bool_)] = values
                yield dense
            at += size


def read_packed(file: TensorFile, fqn: str) -> PackedTensor:
    """One tensor of the file, every claim about it checked.

    Raises:
        FormatError: If anything does not fit, or a value is not finite.
    """
    keys = keys_of(fqn, file.fields)
    scale_key = keys[-1] if keys[-1] == f"{prefix_of(fqn)}.scale" and len(keys) > 1 else None
    try:
        if keys[0] == fqn:
            return _read_dense(file, fqn, scale_key)
        return _read_masked(file, fqn, keys, scale_key)
    except FormatError as error:
        raise FormatError(f"{fqn}: {error}") from None


def _read_dense(file: TensorFile, fqn: str, scale_key: str | None) -> PackedTensor:
    field = file.fields[fqn]
    values = file.array(fqn)
    scale = None if scale_key is None else _scale(file, scale_key, field.shape)
    if field.dtype in FLOAT_DTYPES:
        check_finite(values)
    return PackedTensor(fqn, field.shape, "dense", field.dtype, values, scale=scale)


def _read_masked(
    file: TensorFile, fqn: str, keys: list[str], scale_key: str | None
) -> PackedTensor:
    fields = file.fields
    if fields[keys[0]].dtype != "I64" or fields[keys[0]].shape != (2,):
        raise FormatError("shape must be I64 [2]")
    shape = (int(file.array(keys[0])[0]), int(file.array(keys[0])[1]))
    if not (0 < shape[0] < 2**31 and 0 < shape[1] < 2**31):
        raise FormatError("shape is out of range")
    kind = fields[keys[2]]
    if kind.dtype not in ((*FLOAT_DTYPES, "I8") if scale_key else FLOAT_DTYPES):
        raise FormatError("compressed must be floating-point values, or I8 with scale")
    if len(kind.shape) != 1 or fields[keys[3]].dtype != "U8" or len(fields[keys[3]].shape) != 2:
        raise FormatError("compressed must be a vector, and the mask U8 with 2 dimensions")
    is_block = keys[1].endswith(".block")
    block = read_block(file, keys[1]) if is_block else (1, 1)
    bits, values = file.array(keys[3]), file.array(keys[2])
    _check_mask(bits, shape, block, values.size, is_block=is_block)
    if not is_block and not values.all():
        raise FormatError("a stored value is zero")
    if kind.dtype in FLOAT_DTYPES:
        check_finite(values)
    scale = None if scale_key is None else _scale(file, scale_key, shape)
    packing: Packing = "block" if is_block else "bitmask"
    return PackedTensor(fqn, shape, packing, kind.dtype, values, bits, block, scale)


def _scale(file: TensorFile, key: str, shape: tuple[int, ...]) -> FloatArray:
    if len(shape) < 2:
        raise FormatError("scale beside a vector")
    scale = read_scale(file, key, shape[0])
    with np.errstate(over="ignore"):
        if not np.isfinite(scale * np.float32(127)).all():
            raise FormatError("a value is not finite")
    return scale


def check_finite(values: Array) -> None:
    """Raises FormatError if stored floats hold an infinity or a NaN; looks at their bits only."""
    if values.dtype == np.int8:
        return
    flat = np.ascontiguousarray(values).reshape(-1)
    if values.dtype == np.float32:
        bits, exponent = flat.view(np.uint32), np.array(0x7F800000, np.uint32)
    else:
        half = 0x7C00 if values.dtype == np.float16 else 0x7F80
        bits, exponent = flat.view(np.uint16), np.array(half, np.uint16)
    for start in range(0, flat.size, bitmask.CHUNK_WEIGHTS):
        chunk = bits[start : start + bitmask.CHUNK_WEIGHTS]
        if (np.bitwise_and(chunk, exponent) == exponent).any():
            raise FormatError("a value is not finite")


def _check_mask(
    bits: Bits, shape: tuple[int, int], block: Block, num_values: int, *, is_block: bool
) -> None:
    if bits.shape != bitmask.block_mask_shape(shape, block):
        raise FormatError("the mask does not match the shape")
    columns = -(-shape[1] // block[1])
    if columns % 8 and (bits[:, -1] >> (columns % 8)).any():
        raise FormatError("the mask has pad bits set")
    kept = _num_values(bits, shape, block) if is_block else int(bitmask.count_bits(bits).sum())
    if kept != num_values:
        raise FormatError(f"the mask keeps {kept} weights, {num_values} are stored")


def _num_values(bits: Bits, shape: tuple[int, int], block: Block) -> int:
    """Weights inside the kept blocks; those at the edges are cut."""
    counts = bitmask.count_bits(bits)
    heights = np.full(len(bits), block[0])
    heights[-1] = shape[0] - (len(bits) - 1) * block[0]
    total = int((counts * heights).sum()) * block[1]
    missing = -shape[1] % block[1]
    if missing:
        last = -(-shape[1] // block[1]) - 1
        total -= int((((bits[:, last // 8] >> (last % 8)) & 1) * heights).sum()) * missing
    return total


@dataclass(frozen=True)
class PackedModel:
    """A net as its files hold it, tensor by tensor on request.

    Attributes:
        model: Configuration of the net, with ``kind``, ``input_dim`` and ``vocab_size``.
        features: ``FeatureExtractor.to_dict()``.
        tokenizer: The bytes of ``tokenizer.model``.
        names: Names of all tensors.
        read: Reads a tensor; raises FormatError if it is damaged.
        place: What messages call it.
        trained_seconds: Longest utterance that the net was trained on; None if unknown.
    """

    model: Mapping[str, Any]
    features: dict[str, Any]
    tokenizer: bytes
    names: Sequence[str]
    read: Callable[[str], PackedTensor]
    place: str
    trained_seconds: float | None = None


def read_packed_artifact(path: Path) -> PackedModel:
    """Open an artifact that may come from anyone; its weights are read when asked for.

    Raises:
        FormatError: If anything but the weights is not as it should be, in one line.
    """
    ours, problems = read_config(path)
    require_recogniser(ours["model"], path)
    tokenizer, _, more = check_files(path, ours)
    if problems + more:
        raise FormatError(f"{path}: {(problems + more)[0]}")
    try:
        file = TensorFile(path / WEIGHTS)
        check_names(file, ours)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None

    def read(fqn: str) -> PackedTensor:
        try:
            return read_packed(file, fqn)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from None

    return PackedModel(
        ours["model"],
        ours["features"],
        tokenizer,
        ours["fqns"],
        read,
        str(path),
        trained_seconds_of(ours),
    )


def dense_tensor(fqn: str, array: Array) -> PackedTensor:
    """An array in memory as a tensor of a file; floats are checked to be finite.

    Raises:
        FormatError: If one is not, or the dtype is none that a net has.
    """
    tag = tag_of(array)
    if tag is None:
        raise FormatError(f"{fqn} has dtype {array.dtype}, which no kernel knows")
    if tag in FLOAT_DTYPES:
        try:
            check_finite(array)
        except FormatError as error:
            raise FormatError(f"{fqn}: {error}") from None
    return PackedTensor(fqn, tuple(array.shape), "dense", tag, array)
