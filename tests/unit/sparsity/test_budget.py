from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrix_bytes import bytes_of
from torch import nn

from omnisparse.sparsity.budget import Budget, compression_rate, num_nonzero, num_parameters
from omnisparse.sparsity.report import layer_of
from omnisparse.sparsity.sizes import parse_size, parse_sparsity

SHAPES = {
    "embedding.weight": (50, 8),
    "lstm.weight_ih_l0": (64, 8),
    "lstm.weight_hh_l0": (64, 16),
    "lstm.bias_ih_l0": (64,),
    "lstm.weight_ih_l1": (64, 16),
    "output.weight": (50, 16),
}
PRUNABLE = ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l1"]
DENSE, PRUNED = 3824, 2560


@pytest.fixture
def budget() -> Budget:
    return Budget(SHAPES, PRUNABLE)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("16M", "nonzero", 16_000_000),
        ("1.5m", "nonzero", 1_500_000),
        ("500K", "nonzero", 500_000),
        ("2G", "nonzero", 2 * 10**9),
        (123, "nonzero", 123),
        ("20MB", "bytes", 20_000_000),
        ("20MiB", "bytes", 20 * 2**20),
        ("20 mib", "bytes", 20 * 2**20),
        ("16B", "bytes", 16),
        ("25%", "fraction", Fraction(1, 4)),
        ("12.5%", "fraction", Fraction(1, 8)),
    ],
)
def test_sizes_are_parsed_exactly(text: str, kind: str, value: object) -> None:
    size = parse_size(text)
    assert (size.kind, size.value) == (kind, value)


@pytest.mark.parametrize(
    "text", ["16 apples", "", "M", "1e6", "nan", "inf%", "16MM", "0.3", "1.5.2M", "16M 3"]
)
def test_texts_that_are_no_size_list_the_legal_forms(budget: Budget, text: str) -> None:
    with pytest.raises(ValueError, match="legal sizes: 16M"):
        parse_size(text)
    with pytest.raises(ValueError, match="legal for this model: 1267 to 3824 non-zero"):
        budget.solve(text)


@pytest.mark.parametrize("text", ["0", "-1M", "1266", "3825", "16M", "0%", "110%", "-5%", "33%"])
def test_sizes_out_of_range_name_the_legal_range(budget: Budget, text: str) -> None:
    with pytest.raises(ValueError, match=r"out of range.*1267 to 3824 non-zero parameters"):
        budget.solve(text)


@pytest.mark.parametrize("value", [1.2, -0.1, 1.0, "2"])
def test_sparsities_out_of_range_name_the_legal_range(budget: Budget, value: float) -> None:
    with pytest.raises(ValueError, match=r"sparsity .* out of range.*legal: 0 to 0.998"):
        budget.solve(parse_sparsity(value))


def test_sparsity_must_be_a_number() -> None:
    with pytest.raises(ValueError, match="sparsity nan is not a number"):
        parse_sparsity(float("nan"))


@given(st.integers(1267, DENSE))
def test_requested_nonzeros_are_met_to_the_weight(nonzero: int) -> None:
    budget = Budget(SHAPES, PRUNABLE)
    counts = budget.allocate_uniform(budget.solve(nonzero))
    assert budget.report(counts).nonzero == nonzero


@pytest.mark.parametrize("text", ["34%", "50%", "99.9%", "100%"])
def test_fractions_are_of_the_dense_parameters(budget: Budget, text: str) -> None:
    counts = budget.allocate_uniform(budget.solve(text))
    expected = float(text[:-1]) / 100 * DENSE
    assert abs(budget.report(counts).nonzero - expected) <= 0.5


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.99])
def test_sparsity_is_of_the_prunable_weights(budget: Budget, sparsity: float) -> None:
    assert abs(budget.solve(parse_sparsity(sparsity)) - (1 - sparsity) * PRUNED) <= 0.5


def test_the_legal_bounds_themselves_are_legal(budget: Budget) -> None:
    low, high = budget.nonzero_range()
    assert (budget.solve(low), budget.solve(high)) == (3, PRUNED)
    with pytest.raises(ValueError, match="out of range") as error:
        budget.solve("1%")
    percent = str(error.value).split("legal: ")[1].split("%")[0]
    assert budget.solve(f"{percent}%") >= 3


@given(
    st.integers(0, 900), st.sampled_from([8, 16, 32]), st.lists(st.integers(-5, 200), max_size=9)
)
def test_bytes_land_on_the_largest_model_that_fits(
    limit: int, bits: int, milestones: list[int]
) -> None:
    shapes = {"a": (16, 8), "b": (10, 6), "bias": (16,)}
    budget = Budget(shapes, ["a", "b"])

    def size_of(kept: Mapping[str, int]) -> int:
        return 100 + sum(bytes_of(shapes[fqn], n, bits) for fqn, n in kept.items())

    sizes = {total: size_of(budget.allocate_uniform(total)) for total in range(2, 189)}
    if sizes[2] <= limit <= sizes[188]:
        found = budget.solve_bytes(limit, size_of, milestones=sorted(set(milestones)))
        assert sum(found.values()) == max(n for n, size in sizes.items() if size <= limit)


def test_bytes_out_of_range_name_the_legal_range(budget: Budget) -> None:
    def size_of(kept: Mapping[str, int]) -> int:
        return 1000 + 4 * sum(kept.values())

    with pytest.raises(ValueError, match=r"size '1KB' is out of range.*legal: 1012B to 11240B"):
        budget.solve_bytes("1KB", size_of)
    with pytest.raises(ValueError, match="legal: 1012B to 11240B"):
        budget.solve_bytes(11241, size_of)
    assert sum(budget.solve_bytes(11240, size_of).values()) == PRUNED
    with pytest.raises(ValueError, match="not in bytes"):
        budget.solve_bytes("16M", size_of)
    with pytest.raises(ValueError, match="in bytes, which is not legal here"):
        budget.solve("16MB")


def test_eq_13_as_printed_and_by_dtype() -> None:
    assert compression_rate(0.9) == pytest.approx(1 / (1 - 0.9 + 1 / 32))
    assert compression_rate(0.9, bits=8) == pytest.approx(1 / (0.1 + 1 / 8))
    assert compression_rate(0.9, bits=16, block_size=8) == pytest.approx(1 / (0.1 + 1 / 128))
    assert compression_rate(1 / 32) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"sparsity 1.5"):
        compression_rate(1.5)
    with pytest.raises(ValueError, match="bits 0"):
        compression_rate(0.5, bits=0)


def test_bytes_of_a_matrix() -> None:
    assert bytes_of((64, 8), 100) == 512 // 8 + 400
    assert bytes_of((64, 8), 100, bits=4) == 64 + 50
    assert bytes_of((64, 8), 96, 32, (8, 1)) == 8 + 384
    assert bytes_of((64, 8), 512) == 2048
    assert bytes_of((7, 5), 3, 8, (4, 4)) == 1 + 3


def test_report_states_both_counts_and_the_largest_layer(budget: Budget) -> None:
    report = budget.report({**budget.allocate_uniform(640), "lstm.weight_ih_l1": 1024}, bits=16)
    assert report.dense_parameters == DENSE
    assert report.nonzero_with_mask == report.nonzero + (512 + 1024) / 16
    assert report.compression_rate == DENSE / report.nonzero_with_mask
    layers = {layer.layer: layer for layer in report.layers}
    assert layers["lstm.l0"].parameters == 512 + 1024 + 64
    assert layers["lstm.l0"].nonzero == 128 + 256 + 64
    assert sum(layer.nonzero for layer in report.layers) == report.nonzero
    assert report.largest_layer.layer == "lstm.l1"
    assert json.loads(json.dumps(report.to_dict()))["largest_layer"] == "lstm.l1"
    with pytest.raises(ValueError, match=r"kept names unknown layers: lstm.x"):
        budget.report({"lstm.x": 1})


def test_layers_are_modules_and_levels_of_a_stack() -> None:
    assert layer_of("encoder.lstm.weight_hr_l3_reverse") == "encoder.lstm.l3_reverse"
    assert layer_of("joiner.output.weight") == "joiner.output"
    assert layer_of("weight_ih_l0") == "l0"
    assert layer_of("scale") == "scale"


def test_counts_of_a_model_count_biases_in_full() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[0].bias)
    with torch.no_grad():
        model[0].weight[:, 1:] = 0
    budget = Budget.of(model, ["0.weight"])
    assert num_parameters(model.named_parameters()) == budget.dense_parameters == 23
    assert num_parameters(model.state_dict()) == 23
    assert num_nonzero(model.state_dict(), ["0.weight"]) == 23 - 9


def test_illegal_budgets() -> None:
    with pytest.raises(
        ValueError, match=r"prunable names unknown layers: lstm.x; legal names: emb"
    ):
        Budget(SHAPES, ["lstm.x"])
    with pytest.raises(ValueError, match="prunable is empty"):
        Budget(SHAPES, [])
    with pytest.raises(ValueError, match="floor 2"):
        Budget(SHAPES, PRUNABLE, floor=2)
    with pytest.raises(ValueError, match="without any values"):
        Budget({"a": (0, 3)}, ["a"])


def test_floor_and_blocks_move_the_legal_range() -> None:
    assert Budget(SHAPES, PRUNABLE, floor=0.5).nonzero_range() == (DENSE - PRUNED // 2, DENSE)
    budget = Budget(SHAPES, PRUNABLE, block=(8, 1))
    counts = budget.allocate_uniform(budget.solve("50%"))
    assert all(count % 8 == 0 for count in counts.values())
    assert 1912 - 8 < budget.report(counts).nonzero <= 1912
