"""Weights that are hard to rank, and the slow, obvious selection they are checked against."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

BLOCKS = [(1, 1), (8, 1), (16, 1), (4, 4), (1, 3)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def weights(draw: st.DrawFn, max_side: int = 24) -> Tensor:
    """A matrix of normal, heavily tied, constant, zero, tiny or huge values of any dtype."""
    rows, columns = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["normal", "tied", "equal", "zero", "tiny", "huge", "half zero"]))
    if kind == "tied":
        values = (values * 2).round()
    elif kind == "equal":
        values = values.sign().where(values != 0, torch.ones(())) * 0.25
    elif kind == "zero":
        values = values * 0
    elif kind == "tiny":
        values = values * 1e-7
    elif kind == "huge":
        values = values * 1e4
    elif kind == "half zero":
        values = values.clamp(min=0)
    return values.to(draw(st.sampled_from(DTYPES)))


def block_scores(weight: Tensor, block: tuple[int, int], norm: str) -> list[tuple[float, list]]:
    """Score and member indices of every block, row-major."""
    rows, columns = weight.shape
    magnitudes = weight.double().abs()
    scored = []
    for top in range(0, rows, block[0]):
        for left in range(0, columns, block[1]):
            members = [
                (row, column)
                for row in range(top, min(top + block[0], rows))
                for column in range(left, min(left + block[1], columns))
            ]
            values = [float(magnitudes[member]) for member in members]
            score = 0.0
            for value in values:
                score += value if norm == "l1" else value * value
            for length, extent, first in ((block[0], rows, top), (block[1], columns, left)):
                if first + length > extent:  # by its mean: as if it were whole
                    score *= length / (extent - first)
            scored.append((score, members))
    return scored


def select_slowly(
    weight: Tensor, num_kept: int, block: tuple[int, int] = (1, 1), norm: str = "l1"
) -> Tensor:
    """Keep whole blocks by score, equals by index, until the next one would be too many."""
    scored = block_scores(weight, block, norm)
    order = sorted(range(len(scored)), key=lambda index: -scored[index][0])
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    used = 0
    for index in order:
        members = scored[index][1]
        used += len(members)
        if used > num_kept:
            break
        for member in members:
            mask[member] = True
    return mask
