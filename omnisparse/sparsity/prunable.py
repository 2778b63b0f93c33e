"""Which matrices of a model are pruned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from omnisparse.sparsity.patterns import compile_patterns

DEFAULT_EXCLUDE = (
    "embed",
    "norm",
    r"^(?!encoder\.).*(softmax|output|atten|attn|query|key|value)",
)
"""Not pruned by default: embeddings and normalisation; outside an encoder also output heads and
attention. Self-attention within an encoder is most of its weights, and is pruned."""

_RECURRENT = re.compile(r"weight_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?")

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def find_prunable(
    model: nn.Module,
    include: Sequence[str] = (),
    exclude: Sequence[str] | None = None,
    *,
    may_be_empty: bool = False,
) -> list[str]:
    """Names of the matrices to prune.

    By default the LSTM matrices (`weight_ih`, `weight_hh`, `weight_hr`) and the weights of
    `nn.Linear` (projections, feed-forward layers, self-attention of the encoder): a rule of the
    names alone, so that every method prunes the same matrices of a net.

    Args:
        model: Any module.
        include: Regular expressions searched in parameter names. If given, they replace the default
            rule and choose among all parameters of two or more dimensions.
        exclude: Regular expressions of names to leave out. Default: `DEFAULT_EXCLUDE` without
            `include`, nothing with it.
        may_be_empty: Whether nothing may be left, as in a net all of whose matrices are products
            of two factors.

    Returns:
        Fully qualified names, in model order; a tied parameter appears once.

    Raises:
        ValueError: If an expression is malformed, one of `include` matches nothing, or nothing is
            left and something must be.

    Source: Pang et al. 2018, section 5: only encoder and decoder LSTM weights are pruned. Of a LAS
    with LSTM layers the default rule chooses exactly these.
    """
    if exclude is None:
        exclude = () if include else DEFAULT_EXCLUDE
    included = compile_patterns("pattern", include)
    excluded = compile_patterns("pattern", exclude)
    matrices = {
        fqn: parameter
        for fqn, parameter in model.named_parameters()
        if parameter.ndim >= 2 and parameter.numel() and parameter.is_floating_point()
    }
    for pattern in included:
        if not any(pattern.search(fqn) for fqn in matrices):
            raise ValueError(
                f"include pattern {pattern.pattern!r} matches none of: {', '.join(matrices)}"
            )
    if included:
        chosen = [fqn for fqn in matrices if any(pattern.search(fqn) for pattern in included)]
    else:
        chosen = [fqn for fqn in matrices if _is_prunable_kind(model, fqn)]
    names = [fqn for fqn in chosen if not any(pattern.search(fqn) for pattern in excluded)]
    if not names and not may_be_empty:
        raise ValueError(
            f"nothing to prune with include {list(include)} and exclude {list(exclude)}; "
            f"matrices: {', '.join(matrices) or 'none'}"
        )
    return names


def _is_prunable_kind(model: nn.Module, fqn: str) -> bool:
    module, _, name = fqn.rpartition(".")
    if _RECURRENT.fullmatch(name):
        return True
    return name == "weight" and isinstance(model.get_submodule(module), nn.Linear)


def find_prunable_anywhere(model: nn.Module) -> list[str]:
    """Names of the matrices to prune in a net that we know nothing of.

    The weights of linear, convolutional, recurrent and attention layers, output heads too.
    Embeddings and the parameters of other modules are pruned only if they are named.

    Raises:
        ValueError: If there are none, or one of these layers computes its weight from others.
    """
    names = []
    for fqn, _ in model.named_parameters():
        owner, _, name = fqn.rpartition(".")
        module = model.get_submodule(owner)
        is_weight = name == "weight" and isinstance(module, (nn.Linear, *_CONVOLUTIONS))
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            is_weight = _RECURRENT.fullmatch(name) is not None
        elif isinstance(module, nn.MultiheadAttention):
            is_weight = name.endswith("proj_weight")
        if is_weight:
            names.append(fqn)
    check_plain(model, names, (nn.Linear, *_CONVOLUTIONS, nn.RNNBase))
    if not names:
        legal = [fqn for fqn, parameter in model.named_parameters() if parameter.ndim >= 2]
        raise ValueError(
            "no linear, convolutional, recurrent or attention layer to prune; name matrices with "
            f"prunable=[...], legal: {', '.join(legal) or 'none'}"
        )
    return names


def check_plain(
    model: nn.Module, prunable: Sequence[str], kinds: tuple[type[nn.Module], ...] = ()
) -> None:
    """Refuse weights that a mask cannot reach: those that are computed from other parameters.

    Args:
        model: The net.
        prunable: Names of the matrices to prune. The parameters of a parametrisation, such as the
            factors of a product, may be named themselves: masks reach these.
        kinds: Layers that may not have a computed weight at all.

    Raises:
        ValueError: Naming the first one, and what to do.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for fqn, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{fqn} has no shape yet: run the model once on an example")
    named = {fqn.rpartition(".")[0] for fqn in prunable if fqn not in parameters}
    hooked = {fqn.rpartition(".")[0] for fqn in prunable if fqn.endswith(("_g", "_v", "_orig"))}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        kind = _parametrisation(module)
        if kind is not None and (name in named | hooked or isinstance(module, kinds)):
            raise ValueError(
                f"{name or 'the model'}: its weight is parametrised ({kind}), so a mask would not "
                "reach it; remove that first (torch.nn.utils.parametrize.remove_parametrizations, "
                "torch.nn.utils.remove_weight_norm, torch.nn.utils.prune.remove)"
            )
    for fqn in prunable:
        owner = modules.get(fqn.rpartition(".")[0])
        if isinstance(owner, nn.Embedding) and owner.sparse:
            raise ValueError(
                f"{fqn}: an embedding with sparse=True has sparse gradients; legal: sparse=False, "
                "or leave it out of prunable"
            )


def _parametrisation(module: nn.Module) -> str | None:
    """What computes the weight of a module; None if it is a parameter of its own."""
    if parametrize.is_parametrized(module):
        tensors: Any = module.parametrizations
        return ", ".join(type(one).__name__ for chain in tensors.values() for one in chain)
    own = dict(module.named_parameters(recurse=False))
    if any(name.endswith("_g") and f"{name[:-2]}_v" in own for name in own):
        return "weight_norm"
    buffers = dict(module.named_buffers(recurse=False))
    for name in own:
        stem = name.removesuffix("_orig")
        if stem != name:
            return "torch.nn.utils.prune" if f"{stem}_mask" in buffers else "spectral_norm"
    return None
