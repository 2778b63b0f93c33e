"""Conversion between torch tensors and numpy arrays, which this room works with.

Reading, packing and writing need no torch. Tensors of a caller become arrays that share their
memory, and arrays become tensors for a caller that needs them. numpy has no bfloat16: its bits are
stored as uint16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omnisparse.artifact.tensorfile import Array
from omnisparse.sparsity import arrays

if TYPE_CHECKING:
    from torch import Tensor

_TAGS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "int8": "I8",
    "bool": "BOOL",
}


def tag_of(tensor: Any) -> str | None:
    """Tag of the dtype (``F32``, ``BF16``, ...) of an array or tensor; None if it has no tag.

    ``F64`` does not occur in files: such weights are stored in another precision.
    """
    return _TAGS.get(arrays.dtype_name(tensor))


def as_array(tensor: Any) -> Array:
    """An array or tensor as a contiguous array; not copied if it is one in main memory."""
    return np.asarray(arrays.host(tensor), order="C")


def as_tensor(array: Array) -> Tensor:
    """An array as a tensor that shares its memory."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
