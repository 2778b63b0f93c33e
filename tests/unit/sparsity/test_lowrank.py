"""Truncated SVD of matrices and of chained LSTM layers, against dense arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from omnisparse.sparsity.lowrank import (
    Reader,
    RecurrentLayer,
    factorize_layers,
    recurrent_projection,
    truncated_svd,
)


def matrix(rows: int, columns: int, rank: int | None = None, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, columns, generator=generator)
    return matrix(rows, rank, seed=seed + 1) @ matrix(rank, columns, seed=seed + 2) / rank


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
def test_full_rank_is_the_identity(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    left, right = truncated_svd(weight, min(shape))
    torch.testing.assert_close(left @ right, weight)
    projection = recurrent_projection(matrix(28, 7), 7)
    torch.testing.assert_close(
        matrix(28, 7).double() @ projection.T @ projection, matrix(28, 7).double()
    )


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_error_is_that_of_the_dropped_singular_values(rank: int) -> None:
    weight = matrix(20, 8)
    left, right = truncated_svd(weight, rank)
    assert (left.shape, right.shape) == ((20, rank), (rank, 8))
    dropped = torch.linalg.svdvals(weight.double())[rank:]
    error = torch.linalg.norm((weight - left @ right).double())
    torch.testing.assert_close(error, dropped.square().sum().sqrt(), rtol=1e-5, atol=1e-5)
    projection = recurrent_projection(weight, rank)
    torch.testing.assert_close(weight.double() @ projection.T @ projection, (left @ right).double())
    assert float(left.norm() / right.norm()) == pytest.approx(1.0, rel=1e-4)  # ranges alike


@pytest.mark.parametrize("rank", [0, 9])
def test_an_illegal_rank_names_the_legal_ones(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank}; it must be from 1 to 8"):
        truncated_svd(matrix(20, 8), rank)
    with pytest.raises(ValueError, match=rf"l0: rank is {rank}; it must be from 1 to 8"):
        factorize_layers(
            {"l0.weight_hh_l0": matrix(32, 8)}, [RecurrentLayer(name="l0", rank=rank, readers=())]
        )


class Stack(nn.Module):
    """Two LSTM layers, joined in pairs of frames and beside a constant, and an output layer."""

    def __init__(self, cells: int, projection: int, extra: int = 3) -> None:
        super().__init__()
        width = projection or cells
        self.first = nn.LSTM(4, cells, proj_size=projection)
        self.second = nn.LSTM(2 * width + extra, cells, proj_size=projection)
        self.output = nn.Linear(width, 5)
        self.extra = torch.linspace(-1, 1, extra)

    def forward(self, frames: Tensor) -> Tensor:
        states, _ = self.first(frames)
        time, batch, width = states.shape
        pairs = states.reshape(time // 2, 2, batch, width).transpose(1, 2).flatten(2)
        inputs = torch.cat([pairs, self.extra.expand(time // 2, batch, -1)], dim=-1)
        states, _ = self.second(inputs)
        output: Tensor = self.output(states)
        return output


def layers_of(rank: int) -> list[RecurrentLayer]:
    return [
        RecurrentLayer(
            name="first", rank=rank, readers=(Reader(weight="second.weight_ih_l0", copies=2),)
        ),
        RecurrentLayer(name="second", rank=rank, readers=(Reader(weight="output.weight"),)),
    ]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
def test_layers_of_low_rank_are_factorised_without_loss() -> None:
    torch.manual_seed(0)
    cells, rank = 10, 4
    dense, factored = Stack(cells, 0), Stack(cells, rank)
    # Recurrent matrix and reader share a row space of `rank` dimensions: nothing can be lost.
    space = {"first": matrix(rank, cells, seed=5), "second": matrix(rank, cells, seed=6)}
    with torch.no_grad():
        dense.first.weight_hh_l0.copy_(matrix(4 * cells, rank) @ space["first"] / rank)
        dense.second.weight_hh_l0.copy_(matrix(4 * cells, rank) @ space["second"] / rank)
        for copy in (slice(0, cells), slice(cells, 2 * cells)):
            dense.second.weight_ih_l0[:, copy] = matrix(4 * cells, rank, seed=9) @ space["first"]
        dense.output.weight.copy_(matrix(5, rank) @ space["second"])
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    factored.load_state_dict(factorize_layers(dense.state_dict(), layers_of(rank)))
    frames = torch.randn(8, 2, 4)
    torch.testing.assert_close(factored(frames), dense(frames), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_readers_are_fitted_by_least_squares_and_better_with_every_rank() -> None:
    torch.manual_seed(0)
    state = Stack(10, 0).state_dict()
    errors = []
    for rank in (2, 5, 9, 10):
        new = factorize_layers(state, layers_of(rank))
        projection = new["second.weight_hr_l0"]
        for name in ("second.weight_hh_l0", "output.weight"):
            best = torch.linalg.lstsq(projection.T, state[name].T).solution.T
            torch.testing.assert_close(new[name], best, rtol=1e-4, atol=1e-5)
        errors.append(float((new["output.weight"] @ projection - state["output.weight"]).norm()))
        # Columns that read something else are untouched.
        assert torch.equal(new["second.weight_ih_l0"][:, -3:], state["second.weight_ih_l0"][:, -3:])
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-5  # at full rank nothing is lost


def test_a_normalisation_is_folded_into_its_readers() -> None:
    """At full rank the readers see gain and bias; what is left is that norm and rotation mix."""
    torch.manual_seed(0)
    cells = 10
    norm = nn.LayerNorm(cells)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    state = {
        "l.weight_hh_l0": matrix(4 * cells, cells),
        "norm.weight": norm.weight,
        "norm.bias": norm.bias,
        "out.weight": matrix(30, cells, seed=3),
    }
    layer = RecurrentLayer(
        name="l", rank=cells, readers=(Reader(weight="out.weight"),), norm="norm"
    )
    new = factorize_layers(state, [layer])
    projection = new["l.weight_hr_l0"]
    torch.testing.assert_close(projection @ projection.T, torch.eye(cells), atol=1e-5, rtol=0)
    # The direction that the new normalisation removes is one singular vector, not a mixture.
    removed = projection.sum(dim=0) / cells**0.5
    weakest = torch.linalg.svd(state["l.weight_hh_l0"])[2][-1]
    assert float((removed @ weakest).abs()) == pytest.approx(1.0, abs=1e-4)
    # Outputs without a component there, and of no mean, pass exactly.
    outputs = matrix(50, cells, seed=4)
    basis = torch.linalg.qr(torch.stack([torch.ones(cells), weakest], dim=1)).Q
    outputs = outputs - outputs @ basis @ basis.T
    wanted = norm(outputs).detach() @ state["out.weight"].T
    projected = outputs @ projection.T
    normalised = torch.nn.functional.layer_norm(
        projected, (cells,), new["norm.weight"], new["norm.bias"]
    )
    torch.testing.assert_close(normalised @ new["out.weight"].T, wanted, rtol=1e-3, atol=1e-3)


def test_a_reader_that_cannot_read_the_layer_is_named() -> None:
    state = {"l0.weight_hh_l0": matrix(32, 8), "out.weight": matrix(5, 7)}
    layer = RecurrentLayer(name="l0", rank=2, readers=(Reader(weight="out.weight"),))
    with pytest.raises(ValueError, match=r"l0: out.weight of shape \[5, 7\] cannot read 1 x 8"):
        factorize_layers(state, [layer])
