"""The layout of each tensor of a net in ``model.safetensors``, planned from its shape.

A tensor is packed only if it is a prunable matrix, the format is ``bitmask``, and packing makes it
smaller. The bytes of a tensor never fall when it keeps more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from omnisparse.artifact import bitmask
from omnisparse.artifact.bitmask import Block
from omnisparse.artifact.precision import FLOAT_DTYPES, VALUE_DTYPES, Precision
from omnisparse.artifact.tensorfile import Field
from omnisparse.artifact.tensors import tag_of

Format = Literal["bitmask", "dense"]
FORMATS: tuple[Format, ...] = get_args(Format)
Packing = Literal["dense", "bitmask", "block"]


class Kept(NamedTuple):
    """Kept weights of a matrix: the non-zero weights, and all weights of non-zero blocks."""

    nonzero: int
    in_blocks: int

    def plus(self, other: Kept) -> Kept:
        """The sum of the counts of two parts of a matrix."""
        return Kept(self.nonzero + other.nonzero, self.in_blocks + other.in_blocks)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the net in the file.

    ``num_nonzero`` is the number of weights that count: the kept ones of a prunable tensor, all of
    any other. ``num_values`` is the number of stored values; it is larger than ``num_nonzero`` only
    if a kept block holds zeros.
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
        """Dtype tag of the values in the file."""
        return self.fields[0 if self.packing == "dense" else 2].dtype


def prefix_of(fqn: str) -> str:
    """Prefix of the field names of a packed tensor: ``fqn`` without a final ``.weight``."""
    return fqn.removesuffix(".weight")


def plan_tensor(
    fqn: str,
    tensor: Any,
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
    tensor: Any,
    *,
    num_kept: Kept | None,
    precision: Precision,
    block: Block = (1, 1),
    format: Format = "bitmask",
) -> list[TensorPlan]:
    """Every layout that one tensor may have.

    Args:
        fqn: Its name.
        tensor: An array or tensor; only shape and dtype are used (meta tensors are enough).
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
    tag = tag_of(tensor)
    if tag is None:
        raise ValueError(f"{fqn} has dtype {tensor.dtype}, which an artifact cannot hold")
    if tag not in ("F64", *FLOAT_DTYPES):
        field = Field(fqn, tag, shape)
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
