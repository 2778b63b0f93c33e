"""Artifacts of one or many sizes directly from dense weights, in one pass over them.

The weights may be a memory-mapped checkpoint; then the memory needed is that of its two largest
matrices. Each matrix is read and ranked once for any number of sizes, and no whole mask or masked
copy of it is ever made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omnisparse.artifact.artifact import ArtifactInfo, write_plans
from omnisparse.artifact.contents import Contents
from omnisparse.artifact.layout import Kept
from omnisparse.artifact.packing import CountError, count_rows
from omnisparse.artifact.tensorfile import Array
from omnisparse.artifact.tensors import as_array
from omnisparse.sparsity.keys import Norm
from omnisparse.sparsity.selection import Rows, kept_rows


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """One artifact to extract: its directory, kept weights per prunable matrix, and contents."""

    out: Path
    num_kept: Mapping[str, int]
    contents: Contents


def write_extractions(
    state: Mapping[str, Any], extractions: Sequence[Extraction], *, norm: Norm = "l1"
) -> list[ArtifactInfo]:
    """Extract subnets and write them, each atomically.

    A kept weight may be exactly zero, and blocks may not tile a matrix; then there are fewer
    non-zero weights than requested. All counts, in the files and in the result, are of the weights
    that are really there. Only ``Contents.spec`` states the request: it gives the same net again.

    Args:
        state: The dense state dict: tensors, or arrays (uint16: bits of bfloat16).
        extractions: What to write; all with the same block, each to its own directory.
        norm: Score of a block.

    Returns:
        What was written, in the order of ``extractions``.

    Raises:
        ValueError: If an argument is illegal or a weight cannot be stored.
        OmnisparseError: If a directory exists and is not an artifact, or writing fails.
    """
    blocks = {extraction.contents.block for extraction in extractions}
    if len(blocks) != 1 or len({tuple(e.contents.single) for e in extractions}) != 1:
        raise ValueError(f"extractions must share one block, got {sorted(blocks)}")
    _check_places([extraction.out for extraction in extractions])

    block_of = extractions[0].contents.block_of

    def select(name: str, array: Array, *, drop_zeros: bool = False) -> Iterator[Rows]:
        counts = [extraction.num_kept.get(name, array.size) for extraction in extractions]
        return kept_rows(array, counts, block_of(name), norm, name, drop_zeros=drop_zeros)

    try:
        jobs = [(e.out, e.contents.plan(state, e.num_kept)) for e in extractions]
        return write_plans(jobs, state, select)
    except CountError:
        pass  # count the weights that are there
    counts = _count(state, extractions, select)
    jobs = [
        (extraction.out, extraction.contents.plan(state, count))
        for extraction, count in zip(extractions, counts, strict=True)
    ]
    return write_plans(jobs, state, partial(select, drop_zeros=True))


def _check_places(places: Sequence[Path]) -> None:
    """Refuse two artifacts in one directory: the second would replace the first."""
    taken: set[str] = set()
    for place in places:
        real = os.path.realpath(place)
        if real in taken:
            raise ValueError(f"out {place} is given twice; legal: a different directory for each")
        taken.add(real)


def _count(
    state: Mapping[str, Any],
    extractions: Sequence[Extraction],
    select: Callable[[str, Array], Iterator[Rows]],
) -> list[dict[str, Kept]]:
    """Weights that each extraction really keeps of every prunable tensor."""
    found: list[dict[str, Kept]] = [{} for _ in extractions]
    for fqn in extractions[0].num_kept:
        array = as_array(state[fqn])
        block = extractions[0].contents.block_of(fqn) if array.ndim == 2 else (1, 1)
        for counts in found:
            counts[fqn] = Kept(0, 0)
        for rows in select(fqn, array):
            for index, counts in enumerate(found):
                here = count_rows(rows, index, block)
                counts[fqn] = counts[fqn].plus(here)
    return found
