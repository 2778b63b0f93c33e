"""Importance of weights and blocks as integers, and how blocks tile a matrix.

Magnitudes are compared by their bits, read as integers: non-negative IEEE numbers sort like
integers of the same bits. This makes histograms and ties exact, and the result is the same on every
device, for numpy arrays and for tensors.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from omnisparse.sparsity import arrays
from omnisparse.sparsity.arrays import Array, Host
from omnisparse.sparsity.budget import is_tiled, matrix_shape

Block = tuple[int, int]
Norm = Literal["l1", "l2"]
BLOCKS: tuple[Block, ...] = ((1, 1), (8, 1), (16, 1), (4, 4))

CHUNK_WEIGHTS = 1 << 19
"""Weights of a numpy array processed at a time: temporaries stay in the cache."""

Sizes: TypeAlias = "int | npt.NDArray[np.int64]"
"""Weights per block: one number if all blocks are whole, else one per block."""

_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF << 52}


class Keys:
    """Importance of the blocks of one matrix, as non-negative integers in the order of blocks.

    Iteration gives flat arrays with the sizes of their blocks: one array for a tensor, chunks for a
    numpy array. Subclasses compute the keys when they are needed.

    Args:
        whole: The keys.
        sizes: Weights per block.
    """

    def __init__(self, whole: Array, sizes: Sizes = 1) -> None:
        self._whole = whole
        self.sizes = sizes
        self.bits = int(whole.dtype.itemsize) * 8

    def between(self, start: int, stop: int) -> Array:
        """Keys of the blocks [start, stop)."""
        return self._whole[start:stop]

    def __iter__(self) -> Iterator[tuple[Array, Sizes]]:
        step = CHUNK_WEIGHTS if isinstance(self._whole, np.ndarray) else len(self._whole)
        for start in range(0, max(1, len(self._whole)), max(1, step)):
            part, sizes = slice(start, start + step), self.sizes
            yield self._whole[part], sizes if isinstance(sizes, int) else sizes[part]


class Magnitudes(Keys):
    """Keys of all weights of a numpy array, computed one chunk at a time and never stored.

    Args:
        weights: Floating-point weights (uint16: bits of bfloat16).
        dtype: Convert to this dtype first, so that matrices of different dtypes are comparable.
        name: Name of the matrix, for messages.
    """

    def __init__(self, weights: Host, dtype: str | None = None, name: str = "") -> None:
        self._flat = np.ascontiguousarray(weights).reshape(-1)
        self._dtype = dtype
        self.name = name
        self.sizes = 1
        self.infinity = _INFINITY[dtype or arrays.dtype_name(weights)]
        self.bits = arrays.integer_bits(np.empty(0, dtype) if dtype else weights)

    def between(self, start: int, stop: int) -> Host:
        """Keys of the weights [start, stop), in row-major order."""
        return np.asarray(magnitudes(self._flat[start:stop], self._dtype))

    def __iter__(self) -> Iterator[tuple[Host, Sizes]]:
        for start in range(0, max(1, self._flat.size), CHUNK_WEIGHTS):
            yield self.between(start, start + CHUNK_WEIGHTS), 1


def magnitudes(weights: Array, dtype: str | None = None) -> Array:
    """Keys of single weights: the bits of their magnitude, flat. Infinity and NaN are largest."""
    floats = weights if dtype is None else arrays.as_floats(weights, dtype)
    bits = arrays.as_integers(floats)
    return bits & (2 ** (arrays.integer_bits(floats) - 1) - 1)


def score(
    tensor: Array, block: Block, norm: Norm, name: str = "", dtype: str | None = None
) -> Keys:
    """Importance of every block as a non-negative integer, row-major over blocks.

    The key of a single weight is the bits of its magnitude. A block is summed in float64, one
    element position after the other, so that the order of additions is the same on every device. A
    block at the edge of the matrix counts as if it were whole: its missing weights get the mean of
    its existing weights. Otherwise its sum would be too small in comparison with whole blocks.

    Args:
        tensor: Weights.
        block: Block shape.
        norm: Block score.
        name: Name of the tensor, for messages.
        dtype: Score the weights as converted to this dtype.

    Raises:
        ValueError: If the dtype or norm is not supported, or a weight is not finite. Single weights
            of a numpy array are checked later, when their histogram is computed.
    """
    try:
        arrays.integer_bits(tensor)
    except ValueError as error:
        raise ValueError(f"weights {name or '?'} have {error}") from None
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm {norm!r} is not known; legal: l1, l2")
    if block == (1, 1):
        if isinstance(tensor, np.ndarray):
            return Magnitudes(tensor, dtype, name)
        keys = magnitudes(tensor.detach().contiguous(), dtype).flatten()
        if len(keys) and int(keys.max()) >= _INFINITY[dtype or arrays.dtype_name(tensor)]:
            raise not_finite(name)
        return Keys(keys)
    weights = tensor.reshape(matrix_shape(tensor.shape))
    with np.errstate(over="ignore", invalid="ignore"):
        keys = _block_keys(weights, block, norm, name, dtype)
    return Keys(keys, block_sizes(tensor.shape, block))


def not_finite(name: str) -> ValueError:
    """The error for weights that cannot be ordered."""
    return ValueError(f"weights {name or '?'} hold NaN or infinite values")


def _block_keys(weights: Array, block: Block, norm: Norm, name: str, dtype: str | None) -> Array:
    shape = tuple(-(-size // step) for size, step in zip(weights.shape, block, strict=True))
    scores = arrays.zeros(shape, "float64", weights)
    step = row_step(weights, block)
    for start in range(0, weights.shape[0], step):
        rows = weights[start : start + step]
        if dtype is not None:
            rows = arrays.as_floats(rows, dtype)
        _add_scores(scores[start // block[0] :], rows, block, norm)
    # Blocks that an edge cuts compete by their mean: as large as whole blocks of such weights.
    for axis, (extent, length) in enumerate(zip(weights.shape, block, strict=True)):
        if extent % length:
            edge = scores[-1, :] if axis == 0 else scores[:, -1]
            edge *= length / (extent % length)
    keys = magnitudes(scores).flatten()
    if len(keys) and int(keys.max()) >= _INFINITY["float64"]:
        # Sums of finite numbers may also overflow; such blocks all get the largest key.
        if not np.isfinite(arrays.host(arrays.as_floats(weights, "float64"))).all():
            raise not_finite(name)
        keys[keys >= _INFINITY["float64"]] = _INFINITY["float64"] - 1
    return keys


def _add_scores(scores: Array, weights: Array, block: Block, norm: Norm) -> None:
    for row in range(block[0]):
        for column in range(block[1]):
            part = arrays.as_floats(weights[row :: block[0], column :: block[1]], "float64")
            part = abs(part) if norm == "l1" else part * part
            scores[: part.shape[0], : part.shape[1]] += part


def row_step(weights: Array, block: Block) -> int:
    """Rows processed at a time: all of a tensor, or a chunk of whole blocks of a numpy array."""
    rows, columns = (int(extent) for extent in weights.shape)
    if not isinstance(weights, np.ndarray):
        return max(1, rows)
    return block[0] * max(1, CHUNK_WEIGHTS // max(1, block[0] * columns))


def parse_block(text: str) -> Block:
    """Parse ``8x1`` (8 outputs by 1 input).

    Raises:
        ValueError: If rankings and artifacts do not support this block.
    """
    legal = {f"{rows}x{columns}": (rows, columns) for rows, columns in BLOCKS}
    if text not in legal:
        raise ValueError(f"block {text!r} is not known; legal: {', '.join(legal)}")
    return legal[text]


def ranking_of(block: Block, single: Iterable[str] = ()) -> list[int | str]:
    """What a measurement of masks of ``block`` depends on: the block, and how blocks are ranked.

    Partial blocks competed by their sum once; what was measured then is of other masks.

    Args:
        block: The block.
        single: Names of the matrices whose masks are of single weights nevertheless.
    """
    return [*block] if block == (1, 1) else [*block, "mean", *sorted(single)]


def block_of(fqn: str, block: Block, single: Container[str]) -> Block:
    """The block of a matrix: ``block``, or a single weight where ``single`` names the matrix."""
    return (1, 1) if fqn in single else block


def check_block(block: Block) -> Block:
    """Return the block if it is a pair of positive sizes.

    Raises:
        ValueError: If it is not.
    """
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"block {block} is not a pair of positive sizes such as (8, 1)")
    return block


def block_sizes(shape: Sequence[int], block: Block) -> Sizes:
    """Weights per block: one number if all are whole, else int64 `[num_blocks]`."""
    if is_tiled(shape, block):
        return block[0] * block[1]
    extents = matrix_shape(shape)
    sides = [
        np.minimum(extent - np.arange(0, extent, step), step)
        for extent, step in zip(extents, block, strict=True)
    ]
    return np.outer(sides[0], sides[1]).reshape(-1).astype(np.int64)


def expand_blocks(kept: Array, shape: Sequence[int], block: Block) -> Array:
    """One value per block `[num_blocks]` -> one per weight, in the weights' shape."""
    if block == (1, 1):
        return kept.reshape(*shape)
    rows, columns = matrix_shape(shape)
    grid = kept.reshape(-(-rows // block[0]), -(-columns // block[1]))
    return arrays.repeated(grid, block)[:rows, :columns].reshape(*shape)
