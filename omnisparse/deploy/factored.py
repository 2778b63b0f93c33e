"""Factors of matrices as the kernels multiply by them, one after the other.

A product for each gate has a left factor of four blocks on a diagonal, and a matrix that shares the
projection of another has a right factor with that projection for each output it reads, and ones
for its other inputs. Both are packed without their zeros.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from omnisparse.artifact.packed import PackedTensor
from omnisparse.artifact.tensorfile import Array

_INPUT = re.compile(r"(.+\.)?layers\.(\d+)\.weight_ih_l0$")

_ONES = {"F32": 1, "F16": 1, "BF16": 0x3F80, "I8": 1}
"""One as it is stored in each type, with a scale of 1."""


def factors_of(fqn: str) -> tuple[str, str]:
    """Names of the left and right factor of a matrix, as torch names them."""
    module, _, name = fqn.rpartition(".")
    start = f"{module}.parametrizations.{name}.original"
    return f"{start}0", f"{start}1"


def projection_of(fqn: str, names: Collection[str]) -> str | None:
    """The right factor that a matrix shares with the layer before it; None if it shares none."""
    left, right = factors_of(fqn)
    match = _INPUT.match(fqn)
    if match is None or left not in names or right in names:
        return None
    return factors_of(f"{match[1] or ''}layers.{int(match[2]) - 1}.weight_hh_l0")[1]


def copies_of(fqn: str, columns: int, width: int) -> int:
    """Outputs of the layer before it, ``width`` wide, that a matrix of so many columns reads."""
    return columns // width if fqn.startswith("encoder.") else 1


def on_diagonal(tensor: PackedTensor, gates: int) -> PackedTensor:
    """``[m, r]``, its equal blocks of rows on the diagonal of ``[m, gates r]``."""
    rows, rank = tensor.shape
    parts = np.split(_dense(tensor), gates)
    whole = np.zeros((rows, gates * rank), parts[0].dtype)
    for index, part in enumerate(parts):
        start = index * len(part)
        whole[start : start + len(part), index * rank : (index + 1) * rank] = part
    return replace(tensor, shape=whole.shape, packing="dense", values=whole, bits=None)


def for_each_output(tensor: PackedTensor, copies: int, others: int) -> PackedTensor:
    """``[r, n]`` so often on the diagonal, and as many ones: ``[copies r + others, ...]``."""
    rank, columns = tensor.shape
    part = _dense(tensor)
    whole = np.zeros((copies * rank + others, copies * columns + others), part.dtype)
    for index in range(copies):
        rows = slice(index * rank, (index + 1) * rank)
        whole[rows, index * columns : (index + 1) * columns] = part
    np.fill_diagonal(whole[copies * rank :, copies * columns :], _ONES[tensor.dtype])
    scale = tensor.scale
    if scale is not None:
        scale = np.concatenate([np.tile(scale, copies), np.ones(others, scale.dtype)])
    return replace(tensor, shape=whole.shape, packing="dense", values=whole, bits=None, scale=scale)


def _dense(tensor: PackedTensor) -> Array:
    """All values as they are stored."""
    return np.concatenate(list(tensor.row_chunks()))
