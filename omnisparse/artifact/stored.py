"""The counts of one tensor in a file: a row of every report, planned or counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from omnisparse.artifact.bitmask import Block
from omnisparse.sparsity.budget import num_blocks
from omnisparse.sparsity.report import SizeReport, TensorCount, size_report


def mask_bits(packing: str, shape: Sequence[int], block: Block) -> int:
    """Bits of a tensor's mask for the packing ``dense``, ``bitmask`` or ``block``."""
    if packing == "dense":
        return 0
    return num_blocks(shape, block if packing == "block" else (1, 1))


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One parameter in a file.

    Attributes:
        name: Its fully qualified name.
        shape: Its dense shape.
        nonzero: Weights that count: the non-zero ones of a prunable tensor, all of any other.
        bytes: Bytes of its fields.
        dtype: Dtype tag of its values in the file.
        packing: ``dense``, ``bitmask``, ``block`` or (in nested files) ``bands``.
        mask_bits: Bits that tell the positions of these weights; 0 if all are stored.
        prunable: Whether a mask may prune it.
    """

    name: str
    shape: tuple[int, ...]
    nonzero: int
    bytes: int
    dtype: str
    packing: str
    mask_bits: int
    prunable: bool

    @property
    def parameters(self) -> int:
        """Weights of the dense tensor."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON view."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "nonzero": self.nonzero,
            "sparsity": 1 - self.nonzero / self.parameters if self.parameters else 0.0,
            "bytes": self.bytes,
            "dtype": self.dtype,
            "packing": self.packing,
        }


def report_of(tensors: Iterable[StoredTensor], bits: int) -> SizeReport:
    """The counts of a model, with and without masks; only stored masks count.

    Args:
        tensors: Its parameters, in model order.
        bits: Width of a stored value.
    """
    return size_report(
        (TensorCount(t.name, t.parameters, t.nonzero, t.mask_bits, t.prunable) for t in tensors),
        bits,
    )
