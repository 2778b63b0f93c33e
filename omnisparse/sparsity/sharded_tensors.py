"""Tensors of which each process holds a part, as torch's ``fully_shard`` makes them.

How masks of sharded weights are made: a matrix is gathered, ranked as a whole on every process, and
its copy is dropped before the next one is. So every process has the same ranking, that of an
unsharded training, at the cost of one gathering of the prunable weights per ranking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def as_sharded(tensor: Tensor) -> DTensor | None:
    """The tensor if processes share it; None if it is whole here."""
    return tensor if hasattr(tensor, "full_tensor") else None  # type: ignore[return-value]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every process; of one that is whole, itself.

    All processes must call it, for the same tensors in the same order.
    """
    sharded = as_sharded(tensor)
    return tensor if sharded is None else sharded.full_tensor()


def shared_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, in parts on the processes as ``other`` is; itself if ``other`` is whole.

    Args:
        tensor: The same on every process, of the shape of ``other``.
        other: What it is to be shared like.
    """
    sharded = as_sharded(other)
    if sharded is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Nothing is sent: each process takes its part of what all have.
    return distribute_tensor(
        tensor.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None
    )


@torch.no_grad()
def fill_where_zero(tensor: Tensor, marks: Tensor) -> None:
    """Set a tensor to 0, NaN too, where whole ``marks`` are 0, in place."""
    part = shared_like(marks, tensor)
    sharded, own = as_sharded(tensor), as_sharded(part)
    if sharded is not None and own is not None:
        tensor, part = sharded.to_local(), own.to_local()
    tensor.masked_fill_(part == 0, 0.0)
