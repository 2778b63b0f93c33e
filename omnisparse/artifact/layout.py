"""How each tensor of a net lies in ``model.safetensors``: planned from its shape, and encoded.

A tensor is packed only if it is a prunable matrix, the format is ``bitmask``, and packing makes it
smaller. The bytes of a tensor never fall when it keeps more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from omnisparse.artifact import bitmask
from omnisparse.artifact.bitmask import Block
from omnisparse.artifact.precision import (
    VALUE_DTYPES,
    FloatArray,
    Precision,
    round_values,
    row_scales,
)
from omnisparse.artifact.tensorfile import Array, Field
from omnisparse.sparsity.masks import apply_mask

Format = Literal["bitmask", "dense"]
FORMATS: tuple[Format, ...] = get_args(Format)
Packing = Literal["dense", "bitmask", "block"]

_INTEGER_DTYPES = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


class Kept(NamedTuple):
    """Kept weights of a matrix: the non-zero ones, and all in blocks that are not all zero."""

    nonzero: int
    in_blocks: int


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the net in the file.

    ``num_nonzero`` is what counts: kept weights of a prunable tensor, all of any other.
    ``num_values`` are stored; more than ``num_nonzero`` only where a kept block holds zeros.
    """

    fqn: str
    shape: tuple[int, ...]
    packing: Packing
    precision: Precision | None
    block: Block
    num_nonzero: int
    num_values: int
    fields: tuple[Field, ...]
    prunable: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the data of all fields."""
        return sum(field.num_bytes for field in self.fields)

    @property
    def dtype(self) -> str:
        """Of the values, as the file calls it."""
        return self.fields[0 if self.packing == "dense" else 2].dtype


def prefix_of(fqn: str) -> str:
    """What the fields of a packed tensor are named after: ``fqn`` less a final ``.weight``."""
    return fqn.removesuffix(".weight")


def plan_tensor(
    fqn: str,
    tensor: Tensor,
    *,
    num_kept: Kept | None,
    precision: Precision,
    block: Block = (1, 1),
    format: Format = "bitmask",
) -> TensorPlan:
    """The smallest layout of one tensor: the first of the smallest :func:`candidate_plans`."""
    plans = candidate_plans(
        fqn, tensor, num_kept=num_kept, precision=precision, block=block, format=format
    )
    return min(plans, key=lambda plan: plan.num_bytes)


def candidate_plans(
    fqn: str,
    tensor: Tensor,
    *,
    num_kept: Kept | None,
    precision: Precision,
    block: Block = (1, 1),
    format: Format = "bitmask",
) -> list[TensorPlan]:
    """Every layout that one tensor may have.

    Args:
        fqn: Its name.
        tensor: Only its shape and dtype are used; it may be on the meta device.
        num_kept: Kept weights of a prunable tensor; None for one that is never pruned.
        precision: Stored precision of floating-point tensors. ``int8`` applies to two and more
            dimensions; vectors stay fp32.
        block: Block of the mask, ``(1, 1)`` for unstructured.
        format: ``dense`` never packs.

    Raises:
        ValueError: If the dtype cannot be stored, or ``num_kept`` is out of range.
    """
    shape = tuple(tensor.shape)
    numel = math.prod(shape)
    if num_kept is not None and not 0 <= num_kept.nonzero <= num_kept.in_blocks <= numel:
        raise ValueError(f"num_kept of {fqn} is {num_kept.nonzero}; legal: 0 to {numel}")
    if numel == 0:
        raise ValueError(f"{fqn} is empty: shape {shape}")
    if not tensor.is_floating_point():
        if tensor.dtype not in _INTEGER_DTYPES:
            raise ValueError(f"{fqn} has dtype {tensor.dtype}, which an artifact cannot hold")
        field = Field(fqn, _INTEGER_DTYPES[tensor.dtype], shape)
        return [TensorPlan(fqn, shape, "dense", None, (1, 1), numel, numel, (field,))]
    if precision == "int8" and len(shape) < 2:
        precision = "fp32"
    nonzero = numel if num_kept is None else num_kept.nonzero
    scale = (Field(f"{prefix_of(fqn)}.scale", "F32", (shape[0],)),) if precision == "int8" else ()
    dense_field = Field(fqn, VALUE_DTYPES[precision], shape)
    plans = [
        TensorPlan(fqn, shape, "dense", precision, (1, 1), nonzero, numel, (dense_field, *scale))
    ]
    if num_kept is not None and len(shape) == 2 and format == "bitmask":
        fields = (*_bitmask_fields(fqn, shape, nonzero, precision), *scale)
        plans.append(TensorPlan(fqn, shape, "bitmask", precision, (1, 1), nonzero, nonzero, fields))
        if block != (1, 1):
            values = num_kept.in_blocks
            fields = (*_block_fields(fqn, shape, values, precision, block), *scale)
            plans.append(TensorPlan(fqn, shape, "block", precision, block, nonzero, values, fields))
    return [replace(plan, prunable=num_kept is not None) for plan in plans]


def _bitmask_fields(
    fqn: str, shape: tuple[int, ...], num_kept: int, precision: Precision
) -> tuple[Field, ...]:
    prefix = prefix_of(fqn)
    offsets = shape[0] if fqn.endswith(".weight") else 0
    return (
        Field(f"{prefix}.shape", "I64", (2,)),
        Field(f"{prefix}.row_offsets", "I64", (offsets,)),
        Field(f"{prefix}.compressed", VALUE_DTYPES[precision], (num_kept,)),
        Field(f"{prefix}.bitmask", "U8", (shape[0], -(-shape[1] // 8))),
    )


def _block_fields(
    fqn: str, shape: tuple[int, ...], num_kept: int, precision: Precision, block: Block
) -> tuple[Field, ...]:
    prefix = prefix_of(fqn)
    mask_shape = bitmask.block_mask_shape((shape[0], shape[1]), block)
    return (
        Field(f"{prefix}.shape", "I64", (2,)),
        Field(f"{prefix}.block", "I64", (2,)),
        Field(f"{prefix}.compressed", VALUE_DTYPES[precision], (num_kept,)),
        Field(f"{prefix}.block_bitmask", "U8", mask_shape),
    )


def as_float(tensor: Tensor) -> FloatArray:
    """A tensor as a float32 array, without a copy where it is one already."""
    array: FloatArray = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return array


def count_kept(tensor: Tensor, block: Block) -> Kept:
    """Non-zero weights, and weights of the blocks that are not all zero."""
    weight = as_float(tensor)
    nonzero = int(np.count_nonzero(weight))
    if block == (1, 1) or weight.ndim != 2:
        return Kept(nonzero, nonzero)
    values = bitmask.pack_blocks((weight != 0).astype(np.uint8), block)[1]
    return Kept(nonzero, int(values.size))


def encode(
    plan: TensorPlan, tensor: Tensor, mask: Tensor | None = None
) -> Iterator[tuple[str, Array]]:
    """The fields of one tensor, as ``(key, array)``.

    Args:
        plan: Its plan.
        tensor: Its weights.
        mask: Weights to keep; None where ``tensor`` is zero already where it was pruned.

    Raises:
        ValueError: If a weight is not finite or too large for the precision.
        CountError: If the tensor does not have the planned number of non-zeros.
    """
    if plan.precision is None:
        yield plan.fqn, tensor.detach().cpu().contiguous().numpy()
        return
    try:
        if plan.packing == "bitmask":
            yield from _encode_bitmask(plan, as_float(tensor), mask, plan.precision)
        else:
            masked = tensor if mask is None else apply_mask(tensor, mask)
            yield from _encode_float(plan, as_float(masked), plan.precision)
    except ValueError as error:
        raise type(error)(f"{plan.fqn}: {error}") from None


def _encode_bitmask(
    plan: TensorPlan, weight: FloatArray, mask: Tensor | None, precision: Precision
) -> Iterator[tuple[str, Array]]:
    prefix = prefix_of(plan.fqn)
    kept = None if mask is None else mask.cpu().numpy()
    bits, counts, values = bitmask.pack_rows(weight, plan.num_values, kept)
    if int(counts.sum()) != plan.num_values or (kept is not None and not values.all()):
        raise CountError(f"{plan.num_values} non-zero weights expected")
    per_value = None
    if precision == "int8":
        scales = row_scales(weight if kept is None else np.where(kept, weight, np.float32(0)))
        per_value = np.repeat(scales, counts)
        yield f"{prefix}.scale", scales
    offsets = np.cumsum(counts) - counts
    yield f"{prefix}.row_offsets", offsets if plan.fqn.endswith(".weight") else offsets[:0]
    yield f"{prefix}.bitmask", bits
    yield f"{prefix}.compressed", round_values(values, precision, per_value)
    yield f"{prefix}.shape", np.array(plan.shape, np.int64)


def _encode_float(
    plan: TensorPlan, weight: FloatArray, precision: Precision
) -> Iterator[tuple[str, Array]]:
    prefix = prefix_of(plan.fqn)
    if not np.isfinite(weight).all():
        raise ValueError("a weight is not finite")
    per_row = None
    if precision == "int8":
        scales = row_scales(weight.reshape(weight.shape[0], -1))
        per_row = scales.reshape(-1, *[1] * (weight.ndim - 1))
        yield f"{prefix}.scale", scales
    rounded = round_values(weight, precision, per_row)
    if VALUE_DTYPES[precision] == "BF16":
        rounded = np.where(rounded == 0x8000, np.uint16(0), rounded)  # -0.0 is no value
    if plan.packing == "dense":
        _check_count(plan, rounded)
        yield plan.fqn, rounded
        return
    bits, stored = bitmask.pack_blocks(rounded, plan.block)
    if stored.size != plan.num_values:
        raise CountError(f"{plan.num_values} values in blocks expected, {stored.size} found")
    _check_count(plan, stored)
    yield f"{prefix}.block", np.array(plan.block, np.int64)
    yield f"{prefix}.block_bitmask", bits
    yield f"{prefix}.compressed", stored
    yield f"{prefix}.shape", np.array(plan.shape, np.int64)


class CountError(ValueError):
    """A tensor does not have the number of non-zero weights it was planned with."""


def _check_count(plan: TensorPlan, stored: Array) -> None:
    count = int(np.count_nonzero(stored))
    if plan.prunable and count != plan.num_nonzero:
        raise CountError(f"{plan.num_nonzero} non-zero weights expected, {count} found")
