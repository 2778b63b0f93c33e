"""Counting floating-point operations while a net computes.

Matrix products and convolutions are counted where they are computed, from the shapes that are
computed: padding counts, a weight of zero counts as any other, and what is computed twice counts
twice. A product of ``[m, k]`` and ``[k, n]`` is ``2 m k n`` operations. Its backward pass is as
many for each of the two factors that needs a gradient. Nothing else counts: element-wise
functions, normalisation, softmax, losses and the optimizer are below 2 % of a training step of the
shipped nets. Nor do the scores that torch's fused attention makes again in its backward pass: the
device and the dropout decide whether it does, and they are below 0.5 % of the shipped Conformers.

Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1, for the convention (a backward pass is
    two forward passes). Deviation: the gradient of the features is not computed, and not counted.
    ``torch.utils.flop_counter`` counts no LSTM (``findings/torch_flop_counter_gaps.sh``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


class OperationCount:
    """Floating-point operations counted so far."""

    def __init__(self) -> None:
        self.total = 0


_running: list[OperationCount] = []


@contextmanager
def counted_operations() -> Iterator[OperationCount]:
    """Count the operations of all nets that compute in the block, teachers included.

    Backward passes are counted with their forward passes, so they must follow.
    """
    count = OperationCount()
    # One hook for all blocks that lie in each other.
    hook = None if _running else register_module_forward_hook(_count_module)
    _running.append(count)
    try:
        yield count
    finally:
        _running.remove(count)
        if hook is not None:
            hook.remove()


def count_product(multiply_adds: int, *factors: Tensor, again: int = 0) -> None:
    """Count a matrix product, and its backward pass if there will be one.

    Args:
        multiply_adds: Number of multiplications of the forward pass; each has its addition.
        *factors: The factors of the product; each that needs a gradient is a backward product.
        again: How often the backward pass computes the forward product again.
    """
    if not _running:
        return
    passes = 1
    if torch.is_grad_enabled():
        backward = sum(factor.requires_grad for factor in factors)
        passes += backward + (again if backward else 0)
    for count in _running:
        count.total += 2 * multiply_adds * passes


def _count_module(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """Count the layers of torch that are one product; see :func:`count_product`."""
    if isinstance(module, nn.Linear):
        count_product(inputs[0].numel() * module.out_features, inputs[0], module.weight)
    elif isinstance(module, nn.Conv1d):
        per_output = module.in_channels // module.groups * module.kernel_size[0]
        count_product(output.numel() * per_output, inputs[0], module.weight)
