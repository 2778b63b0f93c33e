from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.sparsity.space import SparsitySpace, SubnetSpec, subnet_generator, uniform_spec

NUMEL = {"a": 6000, "b": 1400, "c": 333}


@given(st.dictionaries(st.text(max_size=5), st.floats(0, 1)))
def test_json_round_trip_is_exact(sparsity: dict[str, float]) -> None:
    spec = SubnetSpec(sparsity)
    again = SubnetSpec.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(st.integers(1, 10**9), st.data())
def test_counts_survive_as_sparsities(numel: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, numel))
    spec = SubnetSpec.from_json(SubnetSpec.from_counts({"w": count}, {"w": numel}).to_json())
    assert spec.num_kept("w", numel) == count


@given(st.integers(3, sum(NUMEL.values())))
def test_uniform_specs_are_exact(total: int) -> None:
    assert sum(uniform_spec(NUMEL, total).counts(NUMEL).values()) == total


def test_specs_are_frozen_and_layers_not_named_are_whole() -> None:
    table = {"a": 0.5}
    spec = SubnetSpec(table)
    table["a"] = 0.1
    assert spec.counts(NUMEL) == {"a": 3000, "b": 1400, "c": 333}
    with pytest.raises(TypeError):
        spec.sparsity["a"] = 0.2


def test_unknown_layers_name_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown layers: encoder.l1; legal names: a, b, c"):
        SubnetSpec({"encoder.l1": 0.5}).counts(NUMEL)
    with pytest.raises(ValueError, match=r"did you mean encoder.weight_ih_l0\?"):
        SubnetSpec({"encoder.weight_ih_0": 0.5}).counts({"encoder.weight_ih_l0": 4})


@pytest.mark.parametrize("value", [1.2, -0.1, float("nan"), "half", None, True])
def test_illegal_sparsities_name_the_layer(value: float) -> None:
    with pytest.raises(ValueError, match=r"sparsity of a is .*; legal: 0 <= sparsity <= 1"):
        SubnetSpec({"a": value})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sparsity": 3}', '{"sparsity": {}, "x": 1}'])
def test_illegal_files_show_the_legal_form(text: str) -> None:
    with pytest.raises(ValueError, match=r'legal: {"sparsity"'):
        SubnetSpec.from_json(text)


def test_samples_are_a_function_of_seed_step_and_index() -> None:
    space = SparsitySpace(NUMEL, min_density=0.05, per_layer=True)
    keys = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 3), (12, 1, 2), (1, 21, 2)]
    drawn = [space.sample(subnet_generator(*key)) for key in keys]
    assert drawn == [space.sample(subnet_generator(*key)) for key in keys]
    assert len(set(drawn)) == len(keys)


def test_other_processes_draw_the_same() -> None:
    code = (
        "from omnisparse.sparsity.space import *;"
        f"space = SparsitySpace({NUMEL!r}, per_layer=True);"
        "print(space.sample(subnet_generator(3, 70, 1)).to_json())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = SparsitySpace(NUMEL, per_layer=True).sample(subnet_generator(3, 70, 1))
    assert json.loads(done.stdout) == json.loads(here.to_json())


@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
@pytest.mark.parametrize("per_layer", [False, True])
def test_samples_stay_in_the_space(distribution: str, per_layer: bool) -> None:
    space = SparsitySpace(
        NUMEL,
        min_density=0.1,
        max_density=0.8,
        distribution=distribution,
        per_layer=per_layer,
        floor=0.01,
    )
    totals = {space.total_kept(density) for density in space.densities}
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        counts = space.sample(generator).counts(NUMEL)
        assert sum(counts.values()) in totals
        assert all(counts[fqn] >= 0.01 * numel for fqn, numel in NUMEL.items())
    low, high = (spec.counts(NUMEL) for spec in (space.min_subnet(), space.max_subnet()))
    assert (sum(low.values()), sum(high.values())) == (round(0.1 * 7733), round(0.8 * 7733))


def test_log_uniform_gives_octaves_equal_shares() -> None:
    space = SparsitySpace({"w": 1_000_000}, min_density=1 / 16, num_densities=65)
    generator = torch.Generator().manual_seed(0)
    kept = [space.sample(generator).num_kept("w", 1_000_000) for _ in range(800)]
    assert 0.4 < sum(count < 250_000 for count in kept) / 800 < 0.6


def test_levels() -> None:
    space = SparsitySpace(NUMEL, distribution="levels", levels=(0.5, 0.25, 0.0625))
    generator = torch.Generator().manual_seed(0)
    assert {space.sample(generator) for _ in range(60)} == {space.at(d) for d in space.densities}
    assert space.max_subnet() == space.at(0.5)
    assert space.min_subnet() == space.at(0.0625)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_density": 0}, "legal: 0 < min_density"),
        ({"min_density": 0.5, "max_density": 0.4}, "legal: 0 < min_density"),
        ({"distribution": "normal"}, "legal: log_uniform, uniform, levels"),
        ({"distribution": "levels"}, "one or more"),
        ({"distribution": "levels", "levels": (0.5, 1.5)}, "densities in"),
        ({"num_densities": 1}, "num_densities 1"),
        ({"spread": -1}, "spread -1"),
    ],
    ids=str,
)
def test_illegal_spaces(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparsitySpace(NUMEL, **arguments)
