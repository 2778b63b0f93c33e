"""The optimizer, AdamW on the dense weights, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from omnisparse.sparsity.patterns import compile_patterns
from omnisparse.sparsity.sharded_tensors import shared_like

_SEPARATOR = "/"
_STATE = ("step", "exp_avg", "exp_avg_sq")


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    factors: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW with decoupled decay of matrices; vectors (biases, norms) have none. One kernel.

    Args:
        parameters: By fully qualified name.
        learning_rate: Learning rate of the first step; the loop sets the later ones.
        betas: Moment decays.
        weight_decay: Weight decay of the matrices.
        factors: Factor of the learning rate by regular expression; see :func:`rate_factors`.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    rates = rate_factors(parameters, factors or {})
    groups = [
        {
            "params": [
                parameter
                for fqn, parameter in parameters.items()
                if (parameter.ndim >= 2) == decayed and rates[fqn] == factor
            ],
            "weight_decay": weight_decay if decayed else 0.0,
            "factor": factor,
        }
        for factor in sorted(set(rates.values()) - {0.0}, key=lambda factor: (factor != 1, factor))
        for decayed in (True, False)
    ]
    devices = {parameter.device.type for parameter in parameters.values()}
    fused = devices <= {"cpu", "cuda"}
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def rate_factors(names: Iterable[str], factors: Mapping[str, float]) -> dict[str, float]:
    """Factor of the learning rate of every parameter.

    Args:
        names: Names of the parameters.
        factors: Factor by regular expression, searched in names; the first that is found counts.

    Returns:
        1 where none is found; 0 for parameters that do not train.

    Raises:
        ValueError: If an expression finds nothing, or every factor is 0.
    """
    patterns = compile_patterns("learning_rate_factors:", factors)
    listed = list(names)
    for pattern in patterns:
        if not any(pattern.search(fqn) for fqn in listed):
            raise ValueError(
                f"learning_rate_factors: {pattern.pattern!r} is in no name of a parameter; names: "
                f"{', '.join(listed[:3])}, ..."
            )
    values = dict(zip(patterns, factors.values(), strict=True))
    found = {
        fqn: next((float(f) for pattern, f in values.items() if pattern.search(fqn)), 1.0)
        for fqn in listed
    }
    if not any(found.values()):
        raise ValueError("learning_rate_factors freezes every parameter; leave one to train")
    return found


def freeze(model: nn.Module, factors: Mapping[str, float]) -> None:
    """Parameters whose factor is 0 get no gradient.

    Raises:
        ValueError: As :func:`rate_factors`.
    """
    named = dict(model.named_parameters())
    for fqn, factor in rate_factors(named, factors).items():
        named[fqn].requires_grad_(factor != 0)


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
                value = value.to(parameter.device)  # the fused kernel counts there, too
                state[key] = value if key == "step" else shared_like(value, parameter)
        if state:
            optimizer.state[parameter] = state
