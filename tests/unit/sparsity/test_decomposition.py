from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from omnisparse.sparsity.decomposition import (
    RankBudget,
    break_even_rank,
    decompose,
    ranks_from_json,
    ranks_to_json,
)
from omnisparse.sparsity.lowrank import truncated_svd

SHAPES = {"a": (48, 32), "b": (12, 40), "c": (5, 5)}


def weights() -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_slices_are_fresh_truncated_decompositions(rank: int) -> None:
    tensors = weights()
    found = decompose(tensors, ["a", "b"])
    for name in ("a", "b"):
        sliced = found[name].factors(rank)
        fresh = truncated_svd(tensors[name], rank)
        torch.testing.assert_close(sliced.left @ sliced.right, fresh.left @ fresh.right)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_each_gate_is_a_fresh_truncated_decomposition(rank: int, tmp_path: Path) -> None:
    tensors = weights()
    for _ in range(2):  # the second time from the file
        item = decompose(tensors, ["a"], gates={"a": 4}, folder=tmp_path, identity="x")["a"]
        left, right = item.factors(rank)
        assert left.shape == (48, rank)
        assert right.shape == (4 * rank, 32)
        for gate, (own, factor, other) in enumerate(
            zip(tensors["a"].chunk(4), left.chunk(4), right.chunk(4), strict=True)
        ):
            fresh = truncated_svd(own, rank)
            torch.testing.assert_close(factor @ other, fresh.left @ fresh.right, msg=str(gate))
    expected = sum(torch.linalg.svdvals(g.double()).square() for g in tensors["a"].chunk(4))
    torch.testing.assert_close(item.energies(), expected, rtol=1e-4, atol=0)


def test_parameters_of_a_product_for_each_gate() -> None:
    budget = RankBudget(SHAPES, 7, gates={"a": 4})
    assert budget.cost("a", 3) == 3 * (48 + 4 * 32)
    assert budget.cost("b", 3) == 3 * (12 + 40)
    assert (budget.full("a"), budget.full("b")) == (12, 12)
    rank = budget.break_even("a")
    assert budget.cost("a", rank) < 48 * 32 <= budget.cost("a", rank + 1)
    ranks = budget.uniform(budget.dense // 2)
    assert budget.parameters(ranks) <= budget.dense // 2


def test_at_full_rank_the_product_is_the_matrix() -> None:
    tensors = weights()
    for name, item in decompose(tensors, SHAPES).items():
        factors = item.factors(min(SHAPES[name]))
        torch.testing.assert_close(factors.left @ factors.right, tensors[name])


def test_energies_are_squared_singular_values() -> None:
    tensors = weights()
    expected = torch.linalg.svdvals(tensors["a"].double()).square()
    torch.testing.assert_close(
        decompose(tensors, ["a"])["a"].energies(), expected, rtol=1e-4, atol=0
    )


def test_decompositions_are_kept_for_the_same_weights_only(tmp_path: Path) -> None:
    tensors = weights()
    computed: list[int] = []

    def count(done: int, total: int) -> None:
        computed.append(done)

    first = decompose(tensors, ["a"], folder=tmp_path, identity="one", on_progress=count)
    again = decompose(tensors, ["a"], folder=tmp_path, identity="one", on_progress=count)
    assert computed == [1]
    assert torch.equal(first["a"].left, again["a"].left)
    decompose(tensors, ["a", "b"], folder=tmp_path, identity="one", on_progress=count)
    assert computed == [1, 1]
    decompose(tensors, ["a"], folder=tmp_path, identity="two", on_progress=count)
    assert computed == [1, 1, 1]


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    tensors = weights()
    decompose(tensors, ["a"], folder=tmp_path, identity="one")
    (tmp_path / "decomposition.safetensors").write_bytes(b"none")
    assert decompose(tensors, ["a"], folder=tmp_path, identity="one")["a"].left.shape == (48, 32)


@given(rows=st.integers(1, 60), columns=st.integers(1, 60))
def test_break_even_is_the_last_rank_that_saves(rows: int, columns: int) -> None:
    rank = break_even_rank(rows, columns)
    assert rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)


@given(total=st.integers(0, 3000))
def test_uniform_and_energy_ranks_stay_inside_the_budget(total: int) -> None:
    budget = RankBudget(SHAPES, fixed=100)
    found = decompose(weights(), SHAPES)
    least = budget.parameters({name: 1 for name in SHAPES})
    if total < least:
        with pytest.raises(ValueError, match=f"legal: {least:,} .* to {budget.dense:,}"):
            budget.uniform(total)
        return
    for ranks in (budget.uniform(total), budget.by_energy(total, found)):
        assert budget.parameters(ranks) <= max(total, least)
        assert all(1 <= rank <= break_even_rank(*SHAPES[name]) for name, rank in ranks.items())
    if total >= budget.dense:
        assert budget.uniform(total) == {}


@given(total=st.integers(400, 3000))
def test_ranks_of_products_do_not_rise(total: int) -> None:
    """What another rank of a product costs is worth more in another matrix."""
    name = next(iter(SHAPES))
    budget = RankBudget(SHAPES, fixed=100, limits={name: 2})
    found = decompose(weights(), SHAPES)
    assume(budget.least <= total < budget.dense)
    for ranks in (budget.uniform(total), budget.by_energy(total, found)):
        assert ranks.get(name, 2) <= 2
        assert budget.parameters(ranks) <= total
    free = RankBudget(SHAPES, fixed=100).uniform(total)
    assert all(budget.uniform(total)[other] >= free[other] for other in SHAPES if other != name)


def test_specs_come_back_and_what_is_none_is_named() -> None:
    assert ranks_from_json(ranks_to_json({"a": 3})) == ({"a": 3}, "stacked")
    assert ranks_from_json(ranks_to_json({"a": 3}, "joint")) == ({"a": 3}, "joint")
    assert "scheme" not in ranks_to_json({"a": 3})
    for text, message in [
        ("{", "not JSON"),
        ("[]", "`ranks` table"),
        ('{"ranks": {"a": 0}}', "rank of a is 0; a whole number of at least 1"),
        ('{"ranks": {"a": 2.5}}', "rank of a is 2.5"),
        ('{"ranks": {}, "other": 1}', "not only"),
        ('{"ranks": {}, "scheme": 1}', "scheme of a rank spec is 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ranks_from_json(text)
