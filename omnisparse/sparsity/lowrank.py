"""Truncated singular value decompositions of weights, and of LSTM layers into LSTMP layers.

An LSTM of h cells with recurrent matrix W_h becomes an LSTMP with the same cells and r outputs.
W_h (the four gates stacked) is replaced by Z_h P, and every matrix W_x that reads the layer's
output by Z_x P with the same P. So P, [r, h], is the layer's projection (``weight_hr``). Z_h is its
new recurrent matrix, and each Z_x is the new input matrix of a reader.

Source: Prabhavalkar et al. 2016 (arXiv:1603.08042), section 3: P from the truncated SVD of W_h,
Z_x by least squares against that P. The result is eq. 11 of Pang et al. 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class Factors(NamedTuple):
    """A matrix as ``left @ right``."""

    left: Tensor
    """``[m, r]``."""
    right: Tensor
    """``[r, n]``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A matrix whose first columns read the output of an LSTM layer.

    Attributes:
        weight: Name of the parameter, ``[m, copies * h + others]``.
        copies: Number of outputs that it reads side by side, from column 0 on (2 where two frames
            are joined). The columns after them read other inputs and stay unchanged.
    """

    weight: str
    copies: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentLayer:
    """An LSTM layer that becomes an LSTMP layer, and the matrices that read its output.

    Attributes:
        name: Name of the ``nn.LSTM`` module, of one layer.
        rank: Width r of its projection, in 1..h.
        readers: Every matrix that reads its output.
        norm: Name of a layer normalisation between output and readers.
    """

    name: str
    rank: int
    readers: tuple[Reader, ...]
    norm: str | None = None


def truncated_svd(weight: Tensor, rank: int) -> Factors:
    """Best approximation of a matrix by one of a lower rank, in the Frobenius norm.

    Args:
        weight: ``[m, n]``.
        rank: Columns r of the left factor, in 1..min(m, n).

    Returns:
        ``(U sqrt(S), sqrt(S) V^T)``: both factors get the root of the singular values, so that
        their values have similar ranges. At full rank the product is ``weight`` up to rounding.

    Raises:
        ValueError: If ``weight`` is not a matrix or ``rank`` is out of range.

    Source: Eckart & Young 1936.
    """
    if weight.ndim != 2:
        raise ValueError(f"a matrix is expected, not a tensor of shape {list(weight.shape)}")
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank is {rank}; it must be from 1 to {min(weight.shape)} here")
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return Factors(
        (left[:, :rank] * root).to(weight.dtype), (root[:, None] * right[:rank]).to(weight.dtype)
    )


def recurrent_projection(recurrent: Tensor, rank: int) -> Tensor:
    """The projection with the smallest approximation error of a recurrent matrix.

    Args:
        recurrent: ``[4 h, h]``, the gates stacked.
        rank: In 1..h.

    Returns:
        ``[r, h]`` with orthonormal rows: the first right singular vectors, in float64. Then
        ``recurrent @ P.T @ P`` is the truncated SVD of ``recurrent``.

    Raises:
        ValueError: If ``rank`` is out of range.
    """
    cells = recurrent.shape[1]
    if not 1 <= rank <= cells:
        raise ValueError(f"rank is {rank}; it must be from 1 to {cells}, the cells of the layer")
    _, _, right = torch.linalg.svd(recurrent.double(), full_matrices=False)
    projection: Tensor = right[:rank]
    return projection


def factorize_layers(
    state: Mapping[str, Tensor], layers: Sequence[RecurrentLayer]
) -> dict[str, Tensor]:
    """State dict of a net whose named LSTM layers are replaced by LSTMP layers.

    Args:
        state: State dict of the dense net; read only.
        layers: The layers to factorise; no matrix may read two of them.

    Returns:
        State dict of the factored net, in the dtypes of ``state``.

    Raises:
        ValueError: If a rank is out of range, or the shape of a reader does not fit; names the
            layer.

    Deviation: the published nets have no layer normalisation. Where one follows, its gain is folded
    into the readers and its bias is fitted to them. Normalisation does not commute with a
    projection, so the factored net then equals the dense one only approximately, at any rank.
    """
    new = dict(state)
    for layer in layers:
        _check_names(state, layer)
        recurrent = state[f"{layer.name}.weight_hh_l0"]
        try:
            projection = recurrent_projection(recurrent, layer.rank)
        except ValueError as error:
            raise ValueError(f"{layer.name}: {error}") from error
        if layer.norm is not None:
            projection = _spare_the_mean(projection)
        new[f"{layer.name}.weight_hh_l0"] = (recurrent.double() @ projection.T).to(recurrent.dtype)
        new[f"{layer.name}.weight_hr_l0"] = projection.to(recurrent.dtype)
        _project_readers(new, layer, projection)
    # Copies, so that no memory is shared with the dense net and no tensor is a view.
    return {name: tensor.detach().clone() for name, tensor in new.items()}


def _check_names(state: Mapping[str, Tensor], layer: RecurrentLayer) -> None:
    norm = () if layer.norm is None else (f"{layer.norm}.weight", f"{layer.norm}.bias")
    readers = [reader.weight for reader in layer.readers]
    for name in (f"{layer.name}.weight_hh_l0", *norm, *readers):
        if name not in state:
            raise ValueError(f"{layer.name}: there is no parameter {name}")


def _project_readers(state: dict[str, Tensor], layer: RecurrentLayer, projection: Tensor) -> None:
    """Express every reader of ``layer`` in its projected output; overwrites entries."""
    rank, cells = projection.shape
    gain = bias = None
    if layer.norm is not None:
        gain = state[f"{layer.norm}.weight"].double()
        bias = state[f"{layer.norm}.bias"].double()
    fitted, wanted = [], []
    for reader in layer.readers:
        weight = state[reader.weight]
        width = reader.copies * cells
        if weight.ndim != 2 or weight.shape[1] < width:
            raise ValueError(
                f"{layer.name}: {reader.weight} of shape {list(weight.shape)} cannot read "
                f"{reader.copies} x {cells} outputs"
            )
        blocks = rearrange(
            weight[:, :width].double(), "row (copy cell) -> row copy cell", cell=cells
        )
        # Rows of the projection are orthonormal, so this is the least-squares solution.
        short = (blocks if gain is None else blocks * gain) @ projection.T
        state[reader.weight] = torch.cat(
            [short.flatten(1).to(weight.dtype), weight[:, width:]], dim=1
        )
        if bias is not None:
            fitted.append(short.sum(dim=1))
            wanted.append(blocks.sum(dim=1) @ bias)
    if layer.norm is not None:
        dtype = state[f"{layer.norm}.weight"].dtype
        solution = torch.linalg.lstsq(torch.cat(fitted), torch.cat(wanted)[:, None]).solution
        state[f"{layer.norm}.weight"] = torch.ones(rank, dtype=dtype)
        state[f"{layer.norm}.bias"] = solution[:, 0].to(dtype)


def _spare_the_mean(projection: Tensor) -> Tensor:
    """Rotate the projected space so that subtracting the mean there loses the least.

    A normalisation removes the direction in which all outputs are equal. A reflection moves the
    weakest of the kept singular vectors to this direction, instead of a mixture of all of them.
    """
    rank = projection.shape[0]
    axis = torch.full((rank,), -(rank**-0.5), dtype=projection.dtype)
    axis[-1] += 1.0
    norm = axis.norm()
    if rank == 1 or float(norm) == 0.0:
        return projection
    axis = axis / norm
    return projection - 2.0 * torch.outer(axis, axis @ projection)
