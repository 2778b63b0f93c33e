"""Tensors as this room handles them: numpy arrays, whoever made them.

Reading, packing and writing need no torch. Where a caller holds tensors they are taken as arrays
that share their memory; where one wants tensors, arrays are given back as such. numpy has no
bfloat16: its bits are carried as uint16.
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
    """Tag of a dtype (``F32``, ``BF16``, ...) of an array or tensor; None if there is none for it.

    ``F64`` is no dtype of a file: such weights are stored in another precision.
    """
    return _TAGS.get(arrays.dtype_name(tensor))


def as_array(tensor: Any) -> Array:
    """An array or tensor as a contiguous array; no copy of what is one in main memory already."""
    return np.asarray(arrays.host(tensor), order="C")


def as_tensor(array: Array) -> Tensor:
    """An array as a tensor that shares its memory."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
