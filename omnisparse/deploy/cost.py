"""How long a product takes in each packing: the fastest is chosen for every matrix.

The constants are nanoseconds of one thread, measured on the processor that
``benchmarks/sparse_runtime_cpu_2026-11.md`` names. What decides is their ratio; ``omnisparse
bench --layers`` tells where a choice was wrong.
"""

from __future__ import annotations

import math
from typing import Literal

Kind = Literal["dense", "block", "csr", "panel", "slice"]

CACHE_BYTES = 4_000_000
"""Matrices that are larger without zeros belong to nets that come from memory at every frame."""

_NS_PER_BYTE = 1 / 25
"""Of reading from memory; from a cache a product waits for nothing."""

_NS_PER_DENSE_WEIGHT = 0.05
_NS_PER_BLOCK = {8: 0.45, 16: 0.70}
_NS_PER_PANEL = {16: 0.9, 32: 1.05, 64: 1.45}
_NS_PER_SLICE = (0.005, 0.052)
"""Per weight of the matrix, kept or not, and more per kept one."""

_SLOTS = (0.08, 1.1)
"""Values that slices hold, zeros that fill up too, counted likewise; as of random masks."""

_NS_PER_VALUE = {0: 1.3, 1: 0.45, 2: 0.45, 3: 1.0}
"""Of a row's list, by the level of the processor."""

_NUMPY = {"dense": 0.14, "block": 1.2, "csr": 2.1}
"""The same per weight, where only numpy is there."""

_NUMBA = {"dense": 0.14, "block": 0.30, "csr": 1.4}
"""The same with numba, whose dense product is numpy's."""

_WIDEST_PANELS = ((64, 0.12), (32, 0.35), (16, 1.0))
"""Width of a panel, and the largest share of kept weights it is taken for."""


def panel_width(density: float) -> int:
    """Columns of a panel, so that seldom more than 16 of a row are kept in one."""
    return next(width for width, most in _WIDEST_PANELS if density <= most)


def product_ns(
    kind: Kind, shape: tuple[int, ...], kept: int, height: int, item_bytes: int, level: int | None
) -> float:
    """Nanoseconds of the product of a matrix with one vector, by the model.

    Args:
        kind: How it is packed.
        shape: Rows and columns.
        kept: Blocks of ``height`` rows that are kept, or weights where ``height`` is 0.
        height: Rows of a block.
        item_bytes: Bytes of a weight.
        level: Of the processor; None for numpy, -1 for numba.
    """
    numel = math.prod(shape)
    weights = kept * max(1, height)
    if level is None or level < 0:
        costs = _NUMPY if level is None else _NUMBA
        return costs[kind] * (numel if kind == "dense" else weights)
    if kind == "dense":
        busy, size = _NS_PER_DENSE_WEIGHT * numel, float(numel * item_bytes)
    elif kind == "block":
        busy, size = _NS_PER_BLOCK[height] * kept, kept * (height * item_bytes + 2.0)
    elif kind == "panel":
        width = panel_width(kept / numel)
        panels = numel / width
        busy, size = _NS_PER_PANEL[width] * panels, kept * (item_bytes + 1.0) + panels
    elif kind == "slice":
        busy = _NS_PER_SLICE[0] * numel + _NS_PER_SLICE[1] * kept
        size = (_SLOTS[0] * numel + _SLOTS[1] * kept) * (item_bytes + 1.0)
    else:
        busy, size = _NS_PER_VALUE[level] * kept, kept * (item_bytes + 2.0)
    if numel * item_bytes <= CACHE_BYTES:
        return busy
    return max(busy, size * _NS_PER_BYTE)


def fastest(
    shape: tuple[int, ...], kept: int, height: int, item_bytes: int, level: int | None
) -> Kind:
    """The packing with the shortest time; arguments as of :func:`product_ns`."""
    kinds: list[Kind] = ["dense"]
    if shape[1] <= 1 << 16:
        kinds += ["block"] if height else ["csr"]
        if not height and level == 2:
            kinds += ["panel", "slice"]
    return min(kinds, key=lambda kind: product_ns(kind, shape, kept, height, item_bytes, level))
