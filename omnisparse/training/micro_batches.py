"""Parts of a batch that are computed one after the other, for less memory and the same gradient."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from omnisparse.data.batching import Batch
from omnisparse.errors import OmnisparseError

_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of the CPU's allocator, the driver and cuBLAS, whose errors are not those of torch's."""


def micro_batches(batch: Batch, parts: int, seconds: float | None) -> list[Batch]:
    """Cut a batch into stretches of neighbouring utterances.

    Args:
        batch: Of one process.
        parts: Least number of stretches, with about as many padded frames each; no more than there
            are utterances.
        seconds: Most audio of a stretch, padding included, in seconds (an utterance that is longer
            is alone); None for no limit.

    Returns:
        The stretches in order; the batch itself where one is enough.
    """
    lengths = batch.feature_lengths.tolist()
    frames_per_second = sum(lengths) / batch.audio_seconds if batch.audio_seconds > 0 else 1.0
    limit = math.inf if seconds is None else seconds * frames_per_second
    longest, count = max(lengths), len(lengths)
    wanted = min(count, max(parts, math.ceil(longest * count / limit) if limit else count))
    if wanted == 1:
        return [batch]
    rows = torch.arange(count)
    edges = [count * number // wanted for number in range(wanted + 1)]
    return [batch.select(rows[start:stop]) for start, stop in pairwise(edges)]


def raise_if_out_of_memory(error: Exception, batch: Batch) -> None:
    """Say which setting helps, if ``error`` is of a device or machine without memory left.

    Raises:
        OmnisparseError: If it is.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(part in text for part in _NO_MEMORY):
        raise OmnisparseError(
            f"out of memory with {len(batch)} utterances of {batch.audio_seconds:.0f} s in a "
            "process's part of a batch; compute it in parts (data.micro_batch_seconds, "
            "training.accumulate) or make it smaller (data.batch_seconds)"
        ) from error
