"""Matrices of a model as products of two smaller ones.

A factored net is an ordinary model: its parameters are the factors, and what reads the matrix sees
their product. The product is made anew for every use, so training costs as much as before (and a
little for the product); a device that multiplies by one factor after the other saves the work.

Three schemes say what a product is of, in a net with LSTM layers; all other matrices are one
product in each of them:

* ``stacked``: the four gates of a matrix are one product.
* ``per_gate``: each gate is a product of its own.
* ``joint``: the recurrent matrix of layer l and the input matrix of layer l + 1 share their right
  factor, the projection of an LSTMP: ``[W_h(l); W_x(l + 1)] = [Z_h; Z_x] P``.

Source: Prabhavalkar et al. 2016 (arXiv:1603.08042), section 3, for ``joint``. Deviation: P stands
before each of its two uses, not once behind the layer, because a layer normalisation between them
does not commute with it. So the net is exact at full rank, and has the parameters of the published
one, but multiplies by P twice. Deviation: P is from the singular value decomposition of both
matrices together, where the paper takes that of ``W_h`` and fits ``Z_x`` by least squares
(:mod:`omnisparse.methods.factorization` does).

Legend: m outputs, n inputs, r rank.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrize

from omnisparse.models.base import SpeechModel
from omnisparse.models.operations import count_product
from omnisparse.models.validation import RankScheme

GATES = 4
"""Of an LSTM: so many equal blocks of rows has each of its matrices."""

_LEFT = re.compile(r"(.+)\.parametrizations\.(\w+)\.original0$")
_INPUT = re.compile(r"(.+\.)?layers\.(\d+)\.weight_ih_l0$")


class FactorNames(NamedTuple):
    """Names of the two parameters that stand for a matrix."""

    left: str
    """Of ``[m, r]``."""
    right: str
    """Of ``[r, n]``; with a product for each gate ``[4 r, n]``; a shared one has another name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankUnit:
    """What one rank decides.

    Attributes:
        gates: Equal blocks of rows that are a product each.
        reader: Name of the matrix that shares the right factor; None for none.
        copies: Outputs of the layer that the reader takes side by side, from column 0 on.
    """

    gates: int = 1
    reader: str | None = None
    copies: int = 1


def rank_unit(fqn: str, shapes: Mapping[str, tuple[int, ...]], scheme: RankScheme) -> RankUnit:
    """What the rank of the matrix ``fqn`` decides in a net with tensors of these shapes."""
    if scheme == "per_gate" and fqn.endswith((".weight_ih_l0", ".weight_hh_l0")):
        return RankUnit(gates=GATES)
    if scheme == "joint" and fqn.endswith(".weight_hh_l0"):
        for reader in shapes:
            if recurrent_of(reader) == fqn:
                copies = _copies(reader, shapes[reader][1], shapes[fqn][1])
                return RankUnit(reader=reader, copies=copies)
    return RankUnit()


def recurrent_of(reader: str) -> str | None:
    """The recurrent matrix of the layer before that of an input matrix; None if there is none."""
    match = _INPUT.match(reader)
    if match is None or match[2] == "0":
        return None
    return f"{match[1] or ''}layers.{int(match[2]) - 1}.weight_hh_l0"


def _copies(reader: str, columns: int, width: int) -> int:
    """Outputs that an input matrix reads: an encoder joins frames, others add other inputs."""
    return columns // width if reader.startswith("encoder.") else 1


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


class GateProducts(LowRankProduct):
    """The product of two factors for each gate, as a parametrization of a matrix of an LSTM."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """``[m, r]`` and ``[4 r, n]``: ``[m, n]``, a product for each quarter of the rows."""
        count_product(left.size(0) * right.numel() // GATES, left, right)
        return gate_products(left, right)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """As of :class:`LowRankProduct`."""
        left, right = super().right_inverse(weight)
        spread = right.square().mean().sqrt()
        return left, right.new_empty(GATES * self.rank, weight.size(1)).normal_() * spread


class SharedProduct(nn.Module):
    """A product with the right factor of another matrix, as a parametrization.

    Args:
        source: The layer whose ``weight_hh_l0`` has the right factor.
        copies: Outputs of that layer that the matrix reads, from column 0 on.
    """

    def __init__(self, source: nn.Module, copies: int) -> None:
        super().__init__()
        self._source = (source,)  # in a tuple, so that its parameters do not count twice
        self.copies = copies

    def forward(self, left: Tensor) -> Tensor:
        """``[m, copies r + others]``: ``[m, copies n + others]``."""
        (right,) = factors_in(self._source[0], "weight_hh_l0")[1:]
        count_product(left.size(0) * self.copies * right.numel(), left, right)
        return shared_product(left, right, self.copies)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """A fresh left factor, as of :class:`LowRankProduct`."""
        (right,) = factors_in(self._source[0], "weight_hh_l0")[1:]
        rank, columns = right.shape
        left = weight.new_empty(weight.size(0), self.copies * rank).normal_()
        scale = weight.std() / (right.square().mean().sqrt() * rank**0.5)
        return (torch.cat([left * scale, weight[:, self.copies * columns :]], dim=1),)


def factors_in(module: nn.Module, name: str) -> list[Tensor]:
    """The factors of a matrix of a module, or their replacements inside a ``functional_call``."""
    holder = module.parametrizations
    assert isinstance(holder, nn.ModuleDict)
    item = holder[name]
    assert isinstance(item, parametrize.ParametrizationList)
    return [getattr(item, f"original{index}") for index in range(item.ntensors)]


def gate_products(left: Tensor, right: Tensor) -> Tensor:
    """``[m, r]`` and ``[4 r, n]``: ``[m, n]``, quarter by quarter of the rows."""
    rank = left.shape[1]
    lefts, rights = left.reshape(GATES, -1, rank), right.reshape(GATES, rank, -1)
    return torch.bmm(lefts, rights).reshape(left.shape[0], -1)


def shared_product(left: Tensor, right: Tensor, copies: int) -> Tensor:
    """``[m, copies r + others]`` and ``[r, n]``: ``[m, copies n + others]``."""
    width = copies * right.shape[0]
    blocks = left[:, :width].reshape(left.shape[0], copies, -1)
    return torch.cat([(blocks @ right).flatten(1), left[:, width:]], dim=1)


def factor_names(fqn: str) -> FactorNames:
    """Names of the factors of the matrix ``fqn``."""
    module, _, name = fqn.rpartition(".")
    start = f"{module}.parametrizations.{name}.original"
    return FactorNames(f"{start}0", f"{start}1")


def factored_matrices(names: Iterable[str]) -> list[str]:
    """The matrices that are products in a net with these tensors, by their own names."""
    return [f"{match[1]}.{match[2]}" for name in names if (match := _LEFT.match(name))]


def factored_units(state: Mapping[str, Tensor]) -> dict[str, RankUnit]:
    """What each rank of a factored net decided, by the matrix that is named with it."""
    names = factored_matrices(state)
    readers = {recurrent_of(name): name for name in names if factor_names(name).right not in state}
    units = {}
    for name in names:
        left, right = (state.get(factor) for factor in factor_names(name))
        if left is None or right is None:
            continue
        unit, reader = RankUnit(gates=right.shape[0] // left.shape[1]), readers.get(name)
        if reader is not None:
            width = state[factor_names(reader).left].shape[1]
            unit = RankUnit(reader=reader, copies=_copies(reader, width, right.shape[0]))
        units[name] = unit
    return units


def product_of(state: Mapping[str, Tensor], fqn: str) -> Tensor:
    """A factored matrix multiplied out, whatever the scheme; ``state`` has its factors."""
    left, right = (state.get(name) for name in factor_names(fqn))
    assert left is not None
    if right is None:
        recurrent = recurrent_of(fqn)
        assert recurrent is not None
        right = state[factor_names(recurrent).right]
        return shared_product(left, right, _copies(fqn, left.shape[1], right.shape[0]))
    return left @ right if right.shape[0] == left.shape[1] else gate_products(left, right)


def joined(state: Mapping[str, Tensor], fqn: str, unit: RankUnit) -> Tensor:
    """The matrix ``[m, n]`` that one rank decomposes: with what reads the same outputs below it."""
    weight = state[fqn]
    if unit.reader is None:
        return weight
    width = unit.copies * weight.shape[1]
    blocks = rearrange(
        state[unit.reader][:, :width], "row (copy cell) -> (copy row) cell", copy=unit.copies
    )
    return torch.cat([weight, blocks])


def separated(
    state: Mapping[str, Tensor], fqn: str, unit: RankUnit, rows: Tensor
) -> dict[str, Tensor]:
    """The inverse of :func:`joined`, of its rows or of their left factor.

    Args:
        state: Has the reader as it is: its other columns are kept.
        fqn: The matrix.
        unit: What its rank decides.
        rows: ``[m, k]``: k is n of the matrices themselves, r of their left factors.

    Returns:
        By the names of the matrices.
    """
    if unit.reader is None:
        return {fqn: rows}
    weight, reader = state[fqn], state[unit.reader]
    blocks = rearrange(rows[len(weight) :], "(copy row) rank -> row (copy rank)", copy=unit.copies)
    others = reader[:, unit.copies * weight.shape[1] :].to(blocks.dtype)
    return {fqn: rows[: len(weight)], unit.reader: torch.cat([blocks, others], dim=1)}


def factor_tensors(
    state: Mapping[str, Tensor], fqn: str, unit: RankUnit, left: Tensor, right: Tensor
) -> dict[str, Tensor]:
    """The parameters that stand for what one rank decides.

    Args:
        state: The net without these factors.
        fqn: The matrix.
        unit: What its rank decides.
        left: ``[m, r]``, of :func:`joined`.
        right: ``[r, n]``, with a product for each gate ``[4 r, n]``.

    Returns:
        By their names, of a reader too.
    """
    parts = separated(state, fqn, unit, left)
    lefts = {factor_names(name).left: part for name, part in parts.items()}
    return {**lefts, factor_names(fqn).right: right}


def factor_matrices(
    model: nn.Module, ranks: Mapping[str, int], scheme: RankScheme = "stacked"
) -> None:
    """Replace matrices of a model by factors; in place.

    Args:
        model: Freshly built.
        ranks: Rank of each matrix that is factored, by its name; with ``per_gate`` of each gate.
        scheme: What a product is of.

    Raises:
        ValueError: If a name is no matrix of the model, a rank is out of range, or two ranks would
            decide one matrix; names it and what is legal.
    """
    matrices = {name: value for name, value in model.named_parameters() if value.dim() == 2}
    shapes = {name: tuple(value.shape) for name, value in matrices.items()}
    units = {}
    for fqn, rank in ranks.items():
        if fqn not in matrices:
            known = ", ".join(sorted(matrices)[:3])
            raise ValueError(f"ranks names {fqn!r}, which is no matrix of this net ({known}, ...)")
        unit = units[fqn] = rank_unit(fqn, shapes, scheme)
        limit = min(shapes[fqn][0] // unit.gates, shapes[fqn][1])
        if type(rank) is not int or not 1 <= rank <= limit:
            raise ValueError(f"rank of {fqn} is {rank!r}; a whole number from 1 to {limit}")
        if unit.reader in ranks:
            raise ValueError(
                f"ranks names {fqn} and {unit.reader}, which share a projection with "
                "rank_scheme joint; legal: the first alone"
            )
    for fqn, unit in units.items():
        module, _, name = fqn.rpartition(".")
        source = model.get_submodule(module)
        product = LowRankProduct if unit.gates == 1 else GateProducts
        parametrize.register_parametrization(source, name, product(ranks[fqn]))
        if unit.reader is not None:
            module, _, name = unit.reader.rpartition(".")
            shared = SharedProduct(source, unit.copies)
            parametrize.register_parametrization(model.get_submodule(module), name, shared)


def multiplied_out(model: SpeechModel) -> SpeechModel:
    """The same net without factors: a copy where there are any, else the model itself."""
    if not any(parametrize.is_parametrized(module) for module in model.modules()):
        return model
    whole = copy.deepcopy(model)
    factored = [module for module in whole.modules() if parametrize.is_parametrized(module)]
    products: list[dict[str, Tensor]] = []
    for module in factored:  # all before the first loses its factors: another may share them
        holder = module.parametrizations
        assert isinstance(holder, nn.ModuleDict)
        products.append({name: getattr(module, name).detach().clone() for name in holder})
    for module, found in zip(factored, products, strict=True):
        # Not by torch's own removal: it takes the matrix from the class, which copies share.
        module.__class__ = type(module).__mro__[1]
        del module.parametrizations
        for name, product in found.items():
            setattr(module, name, nn.Parameter(product, requires_grad=False))
    trains = any(parameter.requires_grad for parameter in model.parameters())
    return whole.requires_grad_(trains)


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict with every factored matrix multiplied out, under the matrix's own name."""
    return multiplied(model.state_dict())


def multiplied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a net with every factored matrix multiplied out, under the matrix's own name."""
    names = factored_matrices(state)
    factors = {name for fqn in names for name in factor_names(fqn)}
    whole = {name: value for name, value in state.items() if name not in factors}
    return {**whole, **{fqn: product_of(state, fqn) for fqn in names}}
