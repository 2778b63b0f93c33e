"""Products of thin matrices by numba, where it is installed and the compiled kernels are not there.

Values of two bytes are widened by numpy before every product: numba has no such type on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

Product = Callable[..., None]
"""``(values, indices, offsets, x, y)``: adds to y; of blocks, values are [N, height], y is flat."""


@cache
def numba_products() -> dict[int, Product]:
    """The product by height of blocks, 0 for single weights; compiled when a type is first seen.

    Raises:
        ImportError: If numba is not installed.
    """
    import numba

    def compiled(function: Product) -> Product:
        options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
        try:
            product: Product = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to keep compiled code
            product = numba.njit(**options)(function)
        return product

    return {0: compiled(_rows), 8: compiled(_blocks_of(8)), 16: compiled(_blocks_of(16))}


def _rows(values: Any, indices: Any, offsets: Any, x: FloatArray, y: FloatArray) -> None:
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        a = b = c = d = np.float32(0.0)  # four sums do not wait for each other
        while at + 4 <= end:
            a += np.float32(values[at]) * x[indices[at]]
            b += np.float32(values[at + 1]) * x[indices[at + 1]]
            c += np.float32(values[at + 2]) * x[indices[at + 2]]
            d += np.float32(values[at + 3]) * x[indices[at + 3]]
            at += 4
        while at < end:
            a += np.float32(values[at]) * x[indices[at]]
            at += 1
        y[row] += (a + b) + (c + d)


def _blocks_of(height: int) -> Product:
    """For a height that is a constant when it is compiled: then a band is one vector."""

    def blocks(values: Any, indices: Any, offsets: Any, x: FloatArray, y: FloatArray) -> None:
        sums = np.zeros(height, np.float32)  # an array: single sums would not be a vector
        for band in range(len(offsets) - 1):
            for lane in range(height):
                sums[lane] = 0.0
            for at in range(offsets[band], offsets[band + 1]):
                factor = x[indices[at]]
                for lane in range(height):
                    sums[lane] += np.float32(values[at, lane]) * factor
            for lane in range(height):
                y[band * height + lane] += sums[lane]

    return blocks
