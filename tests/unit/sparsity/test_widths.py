"""The width solver against brute force, and the limit per layer."""

from __future__ import annotations

import pytest

from omnisparse.sparsity.layer_limit import check_layer_limit, count_layers, parse_layer_limit
from omnisparse.sparsity.widths import Widths, scale_widths, solve_widths

TEMPLATE = {"a": 40, "b": 30, "c": 8}


def count(widths: Widths) -> int:
    return 4 * widths["a"] ** 2 + 3 * widths["a"] * widths["b"] + 10 * widths["c"] + 7


@pytest.mark.parametrize("target", [200, 999, 5_000, 12_345, 700_001])
def test_no_wider_member_of_the_family_fits(target: int) -> None:
    steps = {"c": 4}
    found = solve_widths(TEMPLATE, lambda w: count(w) <= target, multiples=steps, fill=False)
    assert found is not None
    # Every member of the family up to factor 16, by brute force.
    members = {
        tuple(scale_widths(TEMPLATE, index / 5000, steps).items()) for index in range(80_000)
    }
    best = max(count(dict(m)) for m in members if count(dict(m)) <= target)
    assert count(found) == best
    assert found["c"] % 4 == 0


@pytest.mark.parametrize("target", [999, 12_345, 700_001])
def test_filling_uses_what_the_common_factor_leaves(target: int) -> None:
    def fits(widths: Widths) -> bool:
        return count(widths) <= target

    plain, filled = (solve_widths(TEMPLATE, fits, fill=fill) for fill in (False, True))
    assert plain is not None
    assert filled is not None
    assert count(plain) <= count(filled) <= target
    assert all(plain[name] <= filled[name] <= plain[name] + max(1, plain[name] / 16)
               for name in plain)  # fmt: skip
    wider = filled | {"a": filled["a"] + 1}
    assert count(wider) > target or filled["a"] > plain["a"]


def test_budgets_without_an_answer() -> None:
    assert solve_widths(TEMPLATE, lambda w: count(w) <= 3) is None
    with pytest.raises(ValueError, match="no width is too wide"):
        solve_widths(TEMPLATE, lambda w: True)
    with pytest.raises(ValueError, match="at least 1"):
        solve_widths({"a": 0}, lambda w: False)


SHAPES = {
    "embedding.weight": (1000, 64),
    "lstm.weight_ih_l0": (40, 6),
    "lstm.weight_hh_l0": (40, 10),
    "lstm.bias_ih_l0": (40,),
    "lstm.weight_ih_l1": (40, 10),
    "lstm.weight_hh_l1": (40, 10),
    "output.weight": (1000, 10),
    "output.bias": (1000,),
}


def test_layers_are_counted_and_the_recurrent_ones_limited() -> None:
    layers = count_layers(SHAPES)
    assert [(layer.layer, layer.parameters, layer.is_recurrent) for layer in layers] == [
        ("embedding", 64_000, False),
        ("lstm.l0", 680, True),
        ("lstm.l1", 800, True),
        ("output", 11_000, False),
    ]
    check_layer_limit(layers, 800)
    with pytest.raises(ValueError, match=r"layer lstm\.l1 has 800 parameters; .* allows 799"):
        check_layer_limit(layers, 799)


@pytest.mark.parametrize("text", ["4MB", "25%", "0", "many", "-4M"])
def test_a_limit_is_a_number_of_parameters(text: str) -> None:
    with pytest.raises(ValueError, match="size|max_layer_parameters"):
        parse_layer_limit(text)
    assert parse_layer_limit("4M") == 4_000_000
