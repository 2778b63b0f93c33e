"""Matrices of a model as products of two smaller ones.

A factored net is an ordinary model: its parameters are the factors, and what reads the matrix sees
their product. The product is made anew for every use, so training costs as much as before (and a
little for the product); a device that multiplies by one factor after the other saves the work.

Legend: m outputs, n inputs, r rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from omnisparse.models.base import SpeechModel
from omnisparse.models.operations import count_product


class FactorNames(NamedTuple):
    """Names of the two parameters that stand for a matrix."""

    left: str
    """Of ``[m, r]``."""
    right: str
    """Of ``[r, n]``."""


class LowRankProduct(nn.Module):
    """The product of two factors, as a parametrization of a matrix.

    Args:
        rank: Columns r of the left factor.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """``[m, r]`` times ``[r, n]``: ``[m, n]``."""
        count_product(left.size(0) * right.numel(), left, right)
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Fresh factors whose product varies as much as ``[m, n]`` weight does.

        They are no approximation of it: weights that are to be kept come from
        ``omnisparse.sparsity.lowrank``, which would cost seconds for each large matrix here.
        """
        scale = (weight.std() / self.rank**0.5).sqrt()
        rows, columns = weight.shape
        left = weight.new_empty(rows, self.rank).normal_() * scale
        right = weight.new_empty(self.rank, columns).normal_() * scale
        return left, right


def factor_names(fqn: str) -> FactorNames:
    """Names of the factors of the matrix ``fqn``."""
    module, _, name = fqn.rpartition(".")
    start = f"{module}.parametrizations.{name}.original"
    return FactorNames(f"{start}0", f"{start}1")


def factor_matrices(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Replace matrices of a model by two factors each; in place.

    Args:
        model: Freshly built.
        ranks: Rank of each matrix that is factored, by its name.

    Raises:
        ValueError: If a name is no matrix of the model, or a rank is out of range; names it and
            the legal range.
    """
    matrices = {name: value for name, value in model.named_parameters() if value.dim() == 2}
    for fqn, rank in ranks.items():
        if fqn not in matrices:
            known = ", ".join(sorted(matrices)[:3])
            raise ValueError(f"ranks names {fqn!r}, which is no matrix of this net ({known}, ...)")
        limit = min(matrices[fqn].shape)
        if type(rank) is not int or not 1 <= rank <= limit:
            raise ValueError(f"rank of {fqn} is {rank!r}; a whole number from 1 to {limit}")
    for fqn, rank in ranks.items():
        module, _, name = fqn.rpartition(".")
        parametrize.register_parametrization(
            model.get_submodule(module), name, LowRankProduct(rank)
        )


def multiplied_out(model: SpeechModel) -> SpeechModel:
    """The same net without factors: a copy where there are any, else the model itself."""
    if not any(parametrize.is_parametrized(module) for module in model.modules()):
        return model
    whole = copy.deepcopy(model)
    for module in list(whole.modules()):
        if not parametrize.is_parametrized(module):
            continue
        factored = module.parametrizations
        assert isinstance(factored, nn.ModuleDict)
        products = {name: getattr(module, name).detach().clone() for name in factored}
        # Not by torch's own removal: it takes the matrix from the class, which copies share.
        module.__class__ = type(module).__mro__[1]
        del module.parametrizations
        for name, product in products.items():
            setattr(module, name, nn.Parameter(product, requires_grad=False))
    trains = any(parameter.requires_grad for parameter in model.parameters())
    return whole.requires_grad_(trains)


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict with every factored matrix multiplied out, under the matrix's own name."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        prefix = f"{name}." if name else ""
        for tensor_name in module.parametrizations:
            fqn = f"{prefix}{tensor_name}"
            left, right = (state.pop(factor) for factor in factor_names(fqn))
            state[fqn] = left @ right
    return state
