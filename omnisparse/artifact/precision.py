"""Rounding weights to the precision of a file, and back.

A kept weight is never rounded to zero. Instead, it becomes the smallest non-zero number of its
sign. So the number of non-zeros of a net does not depend on the precision of the file, and can be
counted from the bytes.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.tensorfile import Array
from omnisparse.sparsity import arrays

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
VALUE_DTYPES: dict[Precision, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8": "I8"}
VALUE_BITS: dict[Precision, int] = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8}
FLOAT_DTYPES = ("F32", "F16", "BF16")

FloatArray = npt.NDArray[np.float32]


def parse_precision(text: str) -> Precision:
    """Raises ValueError, naming the legal values, for an unknown precision."""
    for precision in PRECISIONS:
        if text == precision:
            return precision
    raise ValueError(f"precision {text!r} is not one of {', '.join(PRECISIONS)}")


def row_scales(weight: FloatArray) -> FloatArray:
    """Symmetric int8 scales, one per row: the largest magnitude of a row becomes 127.

    127 times a scale does not overflow float32, so that stored values can be restored.

    Args:
        weight: [R, C] float32.

    Returns:
        [R] float32, each a positive normal number (1 for a row of zeros).
    """
    largest = np.maximum(weight.max(axis=1, initial=0.0), -weight.min(axis=1, initial=0.0))
    scales = np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):
        too_large = np.isinf(scales * np.float32(127))  # the quotient may have been rounded up
    scales = np.where(too_large, np.nextafter(scales, np.float32(0)), scales)
    return np.where(largest > 0, scales, np.float32(1)).astype(np.float32)


def round_values(
    values: FloatArray, precision: Precision, scales: FloatArray | None = None
) -> Array:
    """Float32 values as stored in a file.

    Args:
        values: Any shape, finite.
        precision: Target; ``int8`` needs ``scales``.
        scales: Broadcastable to ``values``; used by ``int8`` only.

    Returns:
        Same shape: float32, float16, uint16 (the bits of bfloat16) or int8.

    Raises:
        ValueError: If a value is too large for the precision.
    """
    if precision == "fp32":
        return values
    if precision == "int8":
        assert scales is not None
        scaled = np.clip(np.rint(values / scales), -127, 127).astype(np.int8)
        lost = (scaled == 0) & (values != 0)
        scaled[lost] = np.where(values[lost] < 0, -1, 1)
        return np.asarray(scaled)
    if precision == "fp16":
        with np.errstate(over="ignore"):
            bits = np.ascontiguousarray(values.astype(np.float16)).view(np.uint16)
        infinite = np.uint16(0x7C00)
    else:
        # Round to the nearest number with 16 bits less, ties to even.
        whole = np.ascontiguousarray(values).view(np.uint32)
        carry = np.uint32(0x7FFF) + ((whole >> np.uint32(16)) & np.uint32(1))
        bits = ((whole + carry) >> np.uint32(16)).astype(np.uint16)
        infinite = np.uint16(0x7F80)
    if ((bits & infinite) == infinite).any():
        raise ValueError(f"a weight is too large for precision {precision}; use fp32")
    lost = ((bits & np.uint16(0x7FFF)) == 0) & (values != 0)
    bits = np.where(lost, bits | np.uint16(1), bits).astype(np.uint16)
    return bits.view(np.float16) if precision == "fp16" else bits


def restore_values(stored: Array, dtype: str) -> FloatArray:
    """Stored values of dtype tag ``dtype`` as float32; int8 values are not yet scaled."""
    assert (dtype == "BF16") == (stored.dtype == np.uint16)
    return np.asarray(arrays.as_floats(stored, "float32"))
