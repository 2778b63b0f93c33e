"""Coding of a set of positions: Golomb-Rice codes of the gaps, in two plain bit streams.

A gap ``g`` before a position is coded as ``q = g >> k`` zeros and a one in the *unary* stream, and
as its low ``k`` bits in the *low* stream. With two separate streams numpy can decode millions at
once. ``k = 0`` is a bit-mask that ends at its last one. The best ``k`` needs only a few percent
more bytes than the entropy. Bits are least significant first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from omnisparse.errors import FormatError

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

MAX_LOW_BITS = 24


class CodedPositions(NamedTuple):
    """Coded positions: ``low_bits`` is ``k``."""

    low_bits: int
    low: Bytes
    unary: Bytes


def low_stream_bytes(count: int, low_bits: int) -> int:
    """Bytes of the low stream of ``count`` gaps."""
    return -(-count * low_bits // 8)


def _unary_bits(gaps: Positions, low_bits: int) -> int:
    return int((gaps >> low_bits).sum()) + gaps.size


def encode_positions(positions: Positions, num_places: int) -> CodedPositions:
    """Code sorted, distinct positions in [0, num_places).

    Nothing is stored if the set has all positions or none.
    """
    empty = np.zeros(0, np.uint8)
    if positions.size in (0, num_places):
        return CodedPositions(0, empty, empty)
    gaps = np.diff(positions, prepend=-1) - 1
    near = max(0, int(num_places / positions.size).bit_length() - 1)
    candidates = [k for k in range(near - 2, near + 2) if 0 <= k <= MAX_LOW_BITS]
    k = min([0, *candidates], key=lambda k: gaps.size * k + _unary_bits(gaps, k))
    ones = np.cumsum((gaps >> k) + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1, np.uint8)
    unary[ones] = 1
    shifts = np.arange(k, dtype=np.int64)
    low = ((gaps[:, None] >> shifts) & 1).astype(np.uint8)
    return CodedPositions(
        k,
        np.packbits(low.reshape(-1), bitorder="little"),
        np.packbits(unary, bitorder="little"),
    )


def decode_positions(coded: CodedPositions, count: int, num_places: int) -> Positions:
    """The positions of :func:`encode_positions`.

    Raises:
        FormatError: If the streams do not hold exactly ``count`` positions below ``num_places``.
    """
    k, low, unary = coded
    if not 0 <= count <= num_places or not 0 <= k <= MAX_LOW_BITS:
        raise FormatError("positions: count or code out of range")
    if count in (0, num_places):
        if low.size or unary.size or k:
            raise FormatError("positions: bytes given, but none are needed")
        return np.arange(count)
    if low.size != low_stream_bytes(count, k):
        raise FormatError("positions: low stream has the wrong length")
    ones = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    if ones.size != count or ones[-1] // 8 != unary.size - 1:
        raise FormatError(f"positions: {ones.size} coded, {count} expected")
    gaps = (np.diff(ones, prepend=-1) - 1) << k
    bits = np.unpackbits(low, bitorder="little")
    if bits[count * k :].any():
        raise FormatError("positions: pad bits set")
    for shift in range(k):
        gaps |= bits[shift : count * k : k].astype(np.int64) << shift
    positions: Positions = np.cumsum(gaps + 1) - 1
    if positions[-1] >= num_places:
        raise FormatError("positions: beyond the last legal position")
    return positions
