"""The optimizer, AdamW on the dense weights, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_SEPARATOR = "/"
_STATE = ("step", "exp_avg", "exp_avg_sq")


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW with decoupled decay of matrices; vectors (biases, norms) have none. One kernel.

    Args:
        parameters: By fully qualified name.
        learning_rate: Learning rate of the first step; the loop sets the later ones.
        betas: Moment decays.
        weight_decay: Weight decay of the matrices.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    groups = [
        {
            "params": [p for p in parameters.values() if (p.ndim >= 2) == decayed],
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    devices = {parameter.device.type for parameter in parameters.values()}
    fused = devices <= {"cpu", "cuda"}
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """State of the optimizer, ``<parameter>/<what>``; empty before the first step."""
    return {
        f"{name}{_SEPARATOR}{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Restore the tensors of :func:`optimizer_tensors`; parameters without tensors start anew."""
    for name, parameter in parameters.items():
        state = {}
        for key in _STATE:
            value = tensors.get(f"{name}{_SEPARATOR}{key}")
            if value is not None:
                state[key] = value.to(parameter.device)  # the fused kernel counts there, too
        if state:
            optimizer.state[parameter] = state
