"""Running statistics of batch normalisation, which differ between a net and its subnets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def _tracking(model: nn.Module) -> list[_NormBase]:
    """Layers that keep running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    ]


def has_statistics(model: nn.Module) -> bool:
    """Whether a net normalises by running statistics."""
    return bool(_tracking(model))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Passes in this block do not change the running statistics; in training they use the batch.

    Copies take their place for so long: autograd may hold on to the tensors of an earlier pass.
    """
    before = [(layer, dict(layer._buffers)) for layer in _tracking(model)]
    try:
        for layer, buffers in before:
            copies = {n: None if t is None else t.clone() for n, t in buffers.items()}
            layer._buffers.update(copies)
        yield
    finally:
        for layer, buffers in before:
            layer._buffers.update(buffers)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Compute the running statistics anew, as plain means over some batches.

    Args:
        model: The net, or a supernet with a subnet active; its training mode is kept.
        batches: Arguments of the net: a tensor, a tuple of arguments, or a mapping of keyword
            arguments. A few hundred examples are enough; labels are not needed.

    Returns:
        Batches that were seen.

    Raises:
        ValueError: If there is none.

    Source: Yu & Huang 2019, arXiv:1903.05134, section 3.4 ("post-statistics of batch norm").
    """
    layers = _tracking(model)
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    count = 0
    try:
        model.eval()  # dropout stays off: only the statistics are computed
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
            layer.train()
        for batch in batches:
            if isinstance(batch, dict):
                model(**batch)
            else:
                model(*batch if isinstance(batch, tuple | list) else (batch,))
            count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not count:
        raise ValueError("calibrate has no batch; legal: one or more")
    return count
