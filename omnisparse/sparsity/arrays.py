"""The few operations of a ranking that numpy and torch write differently.

A ranking is defined once (:mod:`omnisparse.sparsity.ranking`). It works on torch tensors, which
training has on any device, and on numpy arrays, which extraction reads from a file. So extraction
does not load torch. Both give the same masks, because keys are integers and the order of every
floating-point addition is fixed.

numpy has no bfloat16: an array of uint16 holds its bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from einops import repeat

Array: TypeAlias = Any
"""A numpy array or a torch tensor."""

Host: TypeAlias = npt.NDArray[Any]
"""A numpy array."""

_INTEGERS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}

# numpy's own name of a dtype takes as long to compute as a pass over a chunk.
_NAMES: dict[np.dtype[Any], str] = {
    np.dtype(name): name for name in ("float16", "float32", "float64")
}
_NAMES[np.dtype(np.uint16)] = "bfloat16"


def dtype_name(array: Array) -> str:
    """Name of a dtype of torch or numpy; `bfloat16` for numpy's uint16."""
    if isinstance(array, np.ndarray):
        return _NAMES.get(array.dtype) or str(array.dtype)
    return str(array.dtype).removeprefix("torch.")


def integer_bits(array: Array) -> int:
    """Width of a floating-point dtype.

    Raises:
        ValueError: If the dtype is not one that can be ranked; names the legal ones.
    """
    name = dtype_name(array)
    if name not in _INTEGERS:
        raise ValueError(f"dtype {array.dtype}; legal: {', '.join(_INTEGERS)}")
    return _INTEGERS[name]


def as_integers(array: Array) -> Array:
    """The bits of contiguous floating-point values as signed integers, without a copy."""
    name = f"int{integer_bits(array)}"
    return array.view(np.dtype(name) if isinstance(array, np.ndarray) else _torch(name))


def as_floats(array: Array, name: str) -> Array:
    """Values as `float32` or `float64`; no copy if they have that dtype already.

    Integers of numpy other than uint16 (see above) are converted by value.
    """
    if not isinstance(array, np.ndarray):
        return array.detach().to(_torch(name))
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(name, copy=False)


def zeros(shape: tuple[int, ...], name: str, like: Array) -> Array:
    """Zeros of a dtype, on the device of `like`."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, name)
    return like.new_zeros(shape, dtype=_torch(name))


def where(mask: Array, chosen: Array, otherwise: float) -> Array:
    """`chosen` where the mask is True, one number elsewhere, in the dtype of `chosen`."""
    if isinstance(chosen, np.ndarray):
        return np.where(mask, chosen, chosen.dtype.type(otherwise))
    return chosen.detach().where(mask, chosen.new_full((), otherwise))


def count_values(values: Array, length: int) -> npt.NDArray[np.int64]:
    """How often each of 0..length - 1 occurs: int64 `[length]`, on the host."""
    if isinstance(values, np.ndarray):
        return np.bincount(values, minlength=length)
    return host(values.bincount(minlength=length))


def count_nonzero(array: Array) -> int:
    """Number of values that are not zero; a negative zero counts as zero."""
    if not isinstance(array, np.ndarray):
        return int(array.count_nonzero())
    return int(np.count_nonzero(array & 0x7FFF if array.dtype == np.uint16 else array))


def is_in(values: Array, table: npt.NDArray[np.bool_]) -> Array:
    """Mask of the values for which the table holds True."""
    if isinstance(values, np.ndarray):
        return table.take(values)
    import torch

    return torch.from_numpy(table).to(values.device)[values.int()]


def find(mask: Array) -> Array:
    """Indices of the True entries, in order."""
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.flatten().nonzero()[:, 0]


def host(array: Array) -> Host:
    """The values as a numpy array; no copy if they are in main memory."""
    if isinstance(array, np.ndarray):
        return array
    values = array.detach().cpu()
    if dtype_name(array) == "bfloat16":
        return np.asarray(values.contiguous().view(_torch("int16")).numpy().view(np.uint16))
    return np.asarray(values.numpy())


def joined(parts: Iterable[Array]) -> Array:
    """Flat arrays, concatenated; a single array is not copied."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    return np.concatenate(found)


def repeated(grid: Array, block: tuple[int, int]) -> Array:
    """Every entry of `[R, C]` repeated as a block: `[R * block[0], C * block[1]]`."""
    return repeat(grid, "row column -> (row i) (column j)", i=block[0], j=block[1])


def descending_order(keys: Array) -> Array:
    """Indices of integers from the largest to the smallest, ties by index: int64 `[N]`."""
    if not isinstance(keys, np.ndarray):
        import torch

        if keys.device.type != "cpu" or keys.dtype == torch.int64:
            return keys.sort(descending=True, stable=True).indices
        return torch.from_numpy(descending_order(keys.numpy()))
    if keys.dtype == np.int64 or keys.size >= 2**31:
        return np.argsort(np.iinfo(keys.dtype).max - keys, kind="stable")
    # Key and index in one integer make every entry distinct, so an unstable (vectorised) sort is
    # enough. It is several times faster than a stable one.
    joint = (np.iinfo(np.int32).max - keys.astype(np.int64)) << 32
    joint += np.arange(keys.size)
    joint.sort()
    return joint & (2**32 - 1)


def inverse(order: Array) -> Array:
    """Place of every index in a permutation: int32, on the same device."""
    if isinstance(order, np.ndarray):
        places: Host = np.empty(order.size, np.int32)
        places[order] = np.arange(order.size, dtype=np.int32)
        return places
    import torch

    positions = torch.empty(len(order), dtype=torch.int32, device=order.device)
    positions[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)
    return positions


def _torch(name: str) -> Any:
    """A dtype of torch; called only when torch is already loaded."""
    import torch

    return getattr(torch, name)
