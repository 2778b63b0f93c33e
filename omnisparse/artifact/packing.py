"""Packing one tensor of one artifact directly into its file, one chunk of rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnisparse.artifact import bitmask
from omnisparse.artifact.bitmask import Block
from omnisparse.artifact.layout import Kept, TensorPlan, prefix_of
from omnisparse.artifact.precision import (
    VALUE_DTYPES,
    FloatArray,
    Precision,
    round_values,
    row_scales,
)
from omnisparse.artifact.tensorfile import Array, TensorFileWriter
from omnisparse.artifact.tensors import as_array
from omnisparse.sparsity import arrays
from omnisparse.sparsity.selection import Rows, kept_rows


class CountError(ValueError):
    """A tensor does not have the number of non-zero weights it was planned with."""


class TensorPacker:
    """Writes the fields of one tensor.

    Args:
        plan: The plan of the tensor.
        writer: The file.
    """

    def __init__(self, plan: TensorPlan, writer: TensorFileWriter) -> None:
        self._plan = plan
        self._prefix = prefix_of(plan.fqn)
        self._writer = writer
        self._num_values = 0
        self._num_nonzero = 0
        self._row_counts: list[Array] = []

    def add(self, rows: Rows, index: int) -> None:
        """Store the next rows as subnet ``index`` keeps them.

        Raises:
            ValueError: If a weight is not finite or too large for the precision.
            CountError: If more weights are kept than planned, or one of them is zero.
        """
        plan = self._plan
        try:
            if plan.precision is None:
                self._writer.append(plan.fqn, rows.weights)
            elif plan.packing == "bitmask":
                self._add_bitmask(rows, index, plan.precision)
            else:
                self._add_floats(_finite(rows.masked(index)), plan.precision)
        except ValueError as error:
            raise type(error)(f"{plan.fqn}: {error}") from None

    def finish(self) -> None:
        """Store the fields that are known only at the end.

        Raises:
            CountError: If fewer weights were kept than planned.
        """
        plan = self._plan
        if plan.prunable and self._num_nonzero != plan.num_nonzero:
            raise CountError(f"{plan.fqn}: {plan.num_nonzero} non-zero weights expected")
        if plan.packing == "dense":
            return
        if self._num_values != plan.num_values:
            raise CountError(f"{plan.fqn}: {plan.num_values} values expected")
        self._writer.append(f"{self._prefix}.shape", np.array(plan.shape, np.int64))
        if plan.packing == "block":
            self._writer.append(f"{self._prefix}.block", np.array(plan.block, np.int64))
        elif plan.fqn.endswith(".weight"):
            counts = np.concatenate(self._row_counts)
            self._writer.append(f"{self._prefix}.row_offsets", np.cumsum(counts) - counts)

    def _add_bitmask(self, rows: Rows, index: int, precision: Precision) -> None:
        bits = bitmask.pack_mask(rows.mask(index))
        values = arrays.as_floats(rows.values(index), "float32")
        if rows.is_sound(index):
            self._count(values.size, values.size)
        else:
            self._count(values.size, int(np.count_nonzero(values)))
            _finite(values)
        per_value = None
        if precision == "int8" or self._plan.fqn.endswith(".weight"):
            counts = bitmask.count_bits(bits)
            self._row_counts.append(counts)
        if precision == "int8":
            scales = row_scales(rows.masked(index))
            per_value = np.repeat(scales, counts)
            self._writer.append(f"{self._prefix}.scale", scales)
        stored = round_values(values, precision, per_value)
        self._writer.append(f"{self._prefix}.bitmask", bits)
        self._writer.append(f"{self._prefix}.compressed", stored)

    def _add_floats(self, weight: FloatArray, precision: Precision) -> None:
        plan = self._plan
        per_row = None
        if precision == "int8":
            scales = row_scales(weight)
            per_row = scales[:, None]
            self._writer.append(f"{self._prefix}.scale", scales)
        stored = round_values(weight, precision, per_row)
        if VALUE_DTYPES[precision] == "BF16":
            stored = np.where(stored == 0x8000, np.uint16(0), stored)  # -0.0 counts as zero
        if plan.packing == "dense":
            self._count(stored.size, int(np.count_nonzero(stored)))
            self._writer.append(plan.fqn, stored)
            return
        bits, stored = bitmask.pack_blocks(stored, plan.block)
        self._count(stored.size, int(np.count_nonzero(stored)))
        self._writer.append(f"{self._prefix}.block_bitmask", bits)
        self._writer.append(f"{self._prefix}.compressed", stored)

    def _count(self, num_values: int, num_nonzero: int) -> None:
        plan = self._plan
        self._num_values += num_values
        self._num_nonzero += num_nonzero
        is_short = plan.packing == "bitmask" and self._num_nonzero < self._num_values
        if is_short or self._num_values > plan.num_values:
            raise CountError(f"{plan.num_nonzero} non-zero weights expected")


def _finite(values: Any) -> FloatArray:
    if not np.isfinite(values).all():
        raise ValueError("a weight is not finite")
    return np.asarray(values)


def count_kept(tensor: Any, block: Block) -> Kept:
    """Non-zero weights, and weights of the blocks that are not all zero, of an array or tensor."""
    total = Kept(0, 0)
    array = as_array(tensor)
    for rows in kept_rows(array, block=block):
        total = total.plus(count_rows(rows, 0, block if array.ndim == 2 else (1, 1)))
    return total


def count_rows(rows: Rows, index: int, block: Block) -> Kept:
    """Weights that subnet ``index`` keeps of some rows, counted as in :func:`count_kept`."""
    nonzero = rows.masked(index) != 0
    num_nonzero = int(np.count_nonzero(nonzero))
    if block == (1, 1):
        return Kept(num_nonzero, num_nonzero)
    return Kept(num_nonzero, int(bitmask.pack_blocks(nonzero.view(np.uint8), block)[1].size))
