"""Artifacts of one or many sizes straight from dense weights, in one walk over them.

The weights may be a memory-mapped checkpoint: beyond it, memory is that of its largest matrix. Each
matrix is ranked once, however many sizes are cut from it, and no masked copy of it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from omnisparse.artifact.artifact import ArtifactInfo, Walk, write_plans
from omnisparse.artifact.contents import Contents
from omnisparse.artifact.layout import CountError, Kept, count_kept
from omnisparse.sparsity.masks import apply_mask, masked_tensors
from omnisparse.sparsity.ranking import Norm


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """One artifact to extract: where, how many weights of every prunable matrix, what it says."""

    out: Path
    num_kept: Mapping[str, int]
    contents: Contents


def write_extractions(
    state: Mapping[str, Tensor], extractions: Sequence[Extraction], *, norm: Norm = "l1"
) -> list[ArtifactInfo]:
    """Extract subnets and write them, each atomically.

    Args:
        state: The dense state dict.
        extractions: What to write; all with the same block.
        norm: Score of a block.

    Returns:
        What was written, in the order of ``extractions``.

    Raises:
        ValueError: If an argument is illegal or a weight cannot be stored.
        OmnisparseError: If a place is taken by something else, or the disk refuses.
    """
    blocks = {extraction.contents.block for extraction in extractions}
    if len(blocks) != 1:
        raise ValueError(f"extractions must share one block, got {sorted(blocks)}")
    block = blocks.pop()
    requests = [extraction.num_kept for extraction in extractions]

    def write(walk: Walk, counts: Sequence[Mapping[str, int | Kept]]) -> list[ArtifactInfo]:
        jobs = [
            (extraction.out, extraction.contents.plan(state, count))
            for extraction, count in zip(extractions, counts, strict=True)
        ]
        return write_plans(jobs, walk)

    def walk() -> Walk:
        return masked_tensors(state, requests, block, norm)

    try:
        return write(walk(), requests)
    except CountError:
        # A kept weight happens to be zero, or blocks do not tile a matrix: count what is there.
        exact: list[dict[str, int | Kept]] = [{} for _ in extractions]
        for fqn, tensor, masks in walk():
            for index, extraction in enumerate(extractions):
                if fqn in extraction.num_kept:
                    kept = tensor if masks is None else apply_mask(tensor, masks[index])
                    exact[index][fqn] = count_kept(kept, block)
        return write(_without_zeros(walk()), exact)


def _without_zeros(walk: Walk) -> Iterator[tuple[str, Tensor, list[Tensor] | None]]:
    for fqn, tensor, masks in walk:
        yield fqn, tensor, None if masks is None else [mask & (tensor != 0) for mask in masks]
