"""The oracle for bytes of a packed matrix, counted by hand."""

from __future__ import annotations

import math


def bytes_of(
    shape: tuple[int, int], nonzero: int, bits: int = 32, block: tuple[int, int] = (1, 1)
) -> int:
    """Bytes of one matrix: one mask bit per block plus the kept values; dense if that is smaller.

    Headers, padding and names of a real file are not in it.
    """
    blocks = math.ceil(shape[0] / block[0]) * math.ceil(shape[1] / block[1])
    packed = math.ceil(blocks / 8) + math.ceil(nonzero * bits / 8)
    return min(math.ceil(math.prod(shape) * bits / 8), packed)
