"""Which matrices of a model are pruned."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from omnisparse.sparsity.patterns import compile_patterns

DEFAULT_EXCLUDE = ("embed", "softmax", "output", "atten", "attn", "norm", "query", "key", "value")
"""Not pruned by default: embeddings, the output head, attention, normalisation."""

_RECURRENT = re.compile(r"weight_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?")


def find_prunable(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] | None = None
) -> list[str]:
    """Names of the matrices to prune.

    By default the LSTM matrices (`weight_ih`, `weight_hh`, `weight_hr`) and the weights of
    `nn.Linear` (projections, feed-forward layers).

    Args:
        model: Any module.
        include: Regular expressions searched in parameter names. If given, they replace the default
            rule and choose among all parameters of two or more dimensions.
        exclude: Regular expressions of names to leave out. Default: `DEFAULT_EXCLUDE` without
            `include`, nothing with it.

    Returns:
        Fully qualified names, in model order; a tied parameter appears once.

    Raises:
        ValueError: If an expression is malformed, one of `include` matches nothing, or nothing is
            left.

    Source: Pang et al. 2018, section 5: only encoder and decoder LSTM weights are pruned.
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
    if not names:
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
