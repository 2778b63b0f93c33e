"""Activations that are made again in the backward pass, where that costs less than keeping them.

An LSTM layer keeps its inputs, its gates and its outputs. Its inputs are the outputs of the layer
before, normalised and dropped: a few operations a value, beside the thousands of a matrix product.
So of these only the outputs and the mask of the dropout (a byte a value) are kept.

Legend: T frames, B batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnisparse.models.dropout import LARGE, Dropout, dropped_again

Make = Callable[[], Tensor]
"""Makes a contiguous tensor, each time with the same bits."""


@contextmanager
def made_again(tensor: Tensor, make: Make | None) -> Iterator[None]:
    """In the block, autograd keeps ``make`` instead of a tensor.

    Args:
        tensor: Contiguous; its views are not kept either.
        make: Makes it, in the backward pass; None keeps the tensor.
    """
    if make is None:
        yield
        return
    place = tensor.untyped_storage().data_ptr()

    def pack(kept: Tensor) -> Any:
        if kept.untyped_storage().data_ptr() != place:
            return kept
        return kept.size(), kept.stride(), kept.storage_offset()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return make().as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def between_layers(
    outputs: Tensor, norm: nn.Module, dropout: Dropout, valid: Tensor | None
) -> tuple[Tensor, Make | None]:
    """Inputs of a layer from the outputs of the layer before.

    Args:
        outputs: ``[T, B, D]``.
        norm: A layer normalisation or ``nn.Identity``.
        dropout: Behind it.
        valid: None; or ``[T, B]`` bool, True on frames of an utterance, and neighbours are joined:
            an odd last frame with zeros, in a batch and in a single stream.

    Returns:
        ``[T, B, D]``, or joined ``[ceil(T / 2), B, 2 D]``; and what makes it again, for
        :func:`made_again`: None where it is small, or nothing is learned.
    """
    if outputs.numel() < LARGE or not outputs.requires_grad or not torch.is_grad_enabled():
        return _joined(dropout(norm(outputs)), valid), None
    source = outputs.detach()
    weight, bias = (_copy(getattr(norm, name, None)) for name in ("weight", "bias"))
    widens = isinstance(norm, nn.LayerNorm) and _autocast_widens(outputs)

    def wide() -> Tensor:
        return source.float() if widens else source

    if widens:
        outputs = outputs.float()
    with made_again(outputs, wide if widens else None):
        normalised = norm(outputs)
    dropped, kept = dropout.with_kept(normalised)
    probability = dropout.p  # a subnet may have its own during its forward pass
    frames = _joined(dropped.to(source.dtype), valid)
    if frames.untyped_storage().data_ptr() == source.untyped_storage().data_ptr():
        return frames, None

    def make() -> Tensor:
        values = wide()
        if isinstance(norm, nn.LayerNorm):
            values = F.layer_norm(values, norm.normalized_shape, weight, bias, norm.eps)
        if kept is not None:
            values = dropped_again(values, kept, probability)
        return _joined(values.to(source.dtype), valid)

    return frames, make


def _copy(weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights.detach().clone()


def _autocast_widens(values: Tensor) -> bool:
    """Whether a normalisation makes a float32 copy of them first, which it would keep."""
    return values.is_cuda and torch.is_autocast_enabled("cuda") and values.dtype != torch.float32


def _joined(frames: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return frames
    return pair(frames * valid[:, :, None].to(frames.dtype))


def pair(frames: Tensor) -> Tensor:
    """Concatenate neighbours: ``[T, B, D]`` to ``[ceil(T / 2), B, 2 D]``, padded with zeros."""
    if frames.size(0) % 2:
        frames = F.pad(frames, (0, 0, 0, 0, 0, 1))
    return rearrange(frames, "(time pair) batch dim -> time batch (pair dim)", pair=2)
