from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.sparsity.groups import group_matrices
from omnisparse.sparsity.space import SparsitySpace, SubnetSpec, subnet_generator

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
    assert sum(SparsitySpace(NUMEL).spec(total).counts(NUMEL).values()) == total


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


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"sparsity": 3}', '{"sparsity": {}, "x": 1}', "[" * 100_000, "9" * 5000],
    ids=lambda text: text[:25],
)
def test_illegal_files_show_the_legal_form(text: str) -> None:
    with pytest.raises(ValueError, match=r'legal: {"sparsity"'):
        SubnetSpec.from_json(text)


def test_samples_are_a_function_of_seed_step_and_index() -> None:
    space = SparsitySpace(NUMEL, min_density=0.05, per_layer=True)
    keys = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 3), (12, 1, 2), (1, 21, 2)]
    drawn = [space.sample(subnet_generator(*key)) for key in keys]
    assert drawn == [space.sample(subnet_generator(*key)) for key in keys]
    assert len(set(drawn)) == len(keys)


DRAW = f"""
import sys, torch
from omnisparse.sparsity.space import SparsitySpace, subnet_generator
torch.manual_seed(int(sys.argv[1]))  # whatever state a process is in
torch.rand(int(sys.argv[1]))
space = SparsitySpace({NUMEL!r}, per_layer=True, num_layer_levels=int(sys.argv[2]))
for step in (int(n) for n in sys.argv[3:]):
    print(space.sample(subnet_generator(3, step, 1)).to_json().replace(chr(10), ""))
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("levels", [0, 5])
def test_two_processes_draw_the_same(levels: int) -> None:
    """Of different hash seeds and generator states; one joins later, as after a resume."""
    steps = [["68", "69", "70", "71"], ["70", "71"]]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DRAW, str(rank), str(levels), *steps[rank]],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    first, second = (process.communicate()[0].splitlines() for process in running)
    assert first[2:] == second
    assert len(set(first)) == 4
    here = SparsitySpace(NUMEL, per_layer=True, num_layer_levels=levels)
    drawn = here.sample(subnet_generator(3, 70, 1))
    assert SubnetSpec.from_json(second[0]) == drawn


LAYERS = {
    "encoder.layers.0.weight_ih_l0": (64, 10),
    "encoder.layers.0.weight_hh_l0": (64, 16),
    "encoder.layers.1.weight_ih_l0": (64, 20),
    "encoder.layers.1.weight_hh_l0": (64, 16),
    "joiner.projection.weight": (24, 16),
}


@pytest.mark.parametrize(
    ("patterns", "groups"),
    [
        ((), {"encoder.layers.0.l0": 2, "encoder.layers.1.l0": 2, "joiner.projection": 1}),
        ((".+",), dict.fromkeys(LAYERS, 1)),
        (("encoder",), {"encoder": 4, "joiner.projection": 1}),
        ((r"layers\.1", "weight_ih"), {
            "weight_ih": 1, "encoder.layers.0.l0": 1, "layers.1": 2, "joiner.projection": 1,
        }),
    ],
    ids=str,
)  # fmt: skip
def test_groups_by_expression_or_by_layer(
    patterns: tuple[str, ...], groups: dict[str, int]
) -> None:
    found = group_matrices(LAYERS, patterns)
    assert {group: len(names) for group, names in found.items()} == groups
    assert sorted(name for names in found.values() for name in names) == sorted(LAYERS)


@pytest.mark.parametrize("patterns", [("decoder",), ("encoder", r"layers\.0"), ("(",)])
def test_groups_that_decide_nothing_are_refused(patterns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="layer group"):
        group_matrices(LAYERS, patterns)


@pytest.mark.parametrize("block", [(1, 1), (8, 1)])
def test_groups_share_a_density_and_the_total_is_held(block: tuple[int, int]) -> None:
    space = SparsitySpace(LAYERS, per_layer=True, spread=2.0, block=block, num_layer_levels=5)
    generator = torch.Generator().manual_seed(0)
    size = block[0] * block[1]
    densities = set()
    for _ in range(30):
        offsets = space.sample_offsets(generator)
        assert set(offsets) == set(space.groups)
        assert all(round(o / (space.reach / 2), 9) in {-2, -1, 0, 1, 2} for o in offsets.values())
        counts = space.spec(2000, offsets).counts(space.numel)
        assert sum(counts.values()) == 2000
        assert all(count % size == 0 for count in counts.values())
        for names in space.groups.values():
            shares = [counts[name] / space.numel[name] for name in names]
            # One density, to the block.
            assert max(shares) - min(shares) <= 2 * size / min(space.numel[n] for n in names)
        densities.add(round(counts["joiner.projection.weight"] / 384, 2))
    assert len(densities) > 4


def test_offsets_are_relative_densities() -> None:
    space = SparsitySpace(LAYERS, spread=3.0)
    offsets = {"encoder.layers.0.l0": -0.7, "encoder.layers.1.l0": 0.4, "joiner.projection": 0.0}
    counts = space.spec(1200, offsets).counts(space.numel)
    found = space.offsets_of(counts)
    for group in offsets:
        expected = offsets[group] - offsets["joiner.projection"]
        assert found[group] - found["joiner.projection"] == pytest.approx(expected, abs=0.01)
    assert space.spec(1200) == space.spec(1200, dict.fromkeys(offsets, 0.3))
    with pytest.raises(ValueError, match="offsets names unknown layers: decoder"):
        space.spec(1200, {"decoder": 1.0})


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
    low, high = (space.at(space.densities[end]).counts(NUMEL) for end in (0, -1))
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
    assert space.densities == (0.0625, 0.25, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_density": 0}, "legal: 0 < min_density"),
        ({"min_density": 0.5, "max_density": 0.4}, "legal: 0 < min_density"),
        ({"distribution": "normal"}, "legal: log_uniform, uniform, levels"),
        ({"distribution": "levels"}, "one or more"),
        ({"distribution": "levels", "levels": (0.5, 1.5)}, "densities in"),
        ({"num_densities": 1}, "num_densities 1"),
        ({"spread": -1}, "spread is -1; from 0 to 1000"),
        ({"spread": float("nan")}, "spread is nan; from 0"),
        ({"spread": 1001.0}, "spread is 1001"),
        ({"num_layer_levels": 4}, "num_layer_levels 4"),
    ],
    ids=str,
)
def test_illegal_spaces(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparsitySpace(NUMEL, **arguments)
