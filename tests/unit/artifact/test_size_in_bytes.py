"""A size in bytes is met by the largest model that fits: against brute force over all totals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from omnisparse.artifact import Contents, Extraction, as_array, planned_bytes, write_extractions
from omnisparse.sparsity import allocation
from omnisparse.sparsity.allocation import Allocator
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.space import SubnetSpec

SHAPES = {"lstm.weight_ih_l0": (24, 5), "lstm.weight_hh_l0": (16, 9), "output.weight": (13, 8)}
"""The last is not tiled by blocks of 8 rows."""


class Net:
    """A net, and the functions that `extract` gives to the solver."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int = 0, **options: Any):
        generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Any] = {
            name: torch.randn(shape, generator=generator) * (index + 1)
            for index, (name, shape) in enumerate(shapes.items())
        }
        self.state["bias"] = torch.zeros(11)
        block = options.get("block", (1, 1))
        self.budget = Budget(
            {name: tensor.shape for name, tensor in self.state.items()}, list(shapes), block=block
        )
        self.contents = Contents(
            model={"kind": "las"}, tokenizer=b"12", tokens_txt="a", features={}, source={},
            dense_parameters=self.budget.dense_parameters, prunable=list(shapes), **options,
        )  # fmt: skip

    def allocator(self, scope: Any) -> Allocator:
        weights = {name: self.state[name] for name in self.budget.prunable}
        return Allocator(weights, scope, 0.0, self.budget.block)

    def contents_for(self, kept: Mapping[str, int]) -> Contents:
        return replace(self.contents, spec=SubnetSpec.from_counts(kept, self.budget.prunable))

    def size_of(self, kept: Mapping[str, int]) -> int:
        return planned_bytes(self.state, kept, **vars(self.contents_for(kept)))


VARIANTS = [
    {"precision": precision, "block": block, "format": format}
    for precision in ("fp32", "fp16", "int8")
    for block in ((1, 1), (8, 1))
    for format in ("bitmask", "dense")
]


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
@pytest.mark.parametrize(
    "options", VARIANTS, ids=lambda options: "-".join(map(str, options.values()))
)
def test_the_answer_is_that_of_brute_force(tmp_path, options, scope):
    net = Net(SHAPES, **options)
    allocator = net.allocator(scope)
    low, high = sum(net.budget.floors.values()), net.budget.prunable_parameters
    counts = {total: allocator.counts(total) for total in range(low, high + 1)}
    sizes = {total: net.size_of(kept) for total, kept in counts.items()}
    limits = {size + more for size in sizes.values() for more in (-1, 0, 1)}
    chosen = sorted(limit for limit in limits if sizes[low] <= limit <= sizes[high])
    assert len(chosen) > (3 if options["format"] == "bitmask" else 0)
    for limit in chosen[:: max(1, len(chosen) // 8)]:
        found = net.budget.solve_bytes(
            f"{limit}B", net.size_of, allocator.counts, milestones=allocator.milestones
        )
        assert found == counts[max(total for total, size in sizes.items() if size <= limit)]
    extraction = Extraction(out=tmp_path / "a", num_kept=found, contents=net.contents_for(found))
    (info,) = write_extractions(net.state, [extraction])
    written = sum(p.stat().st_size for p in (tmp_path / "a").iterdir() if p.name != "README.md")
    assert written == info.bytes == net.size_of(found)


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("block", [(1, 1), (8, 1)])
def test_no_total_near_the_answer_fits_better(scope, precision, block):
    shapes = {f"encoder.weight_hh_l{layer}": (160, 40 + 8 * layer) for layer in range(4)}
    net = Net(shapes, precision=precision, block=block)
    allocator = net.allocator(scope)
    half = allocator.counts(net.budget.prunable_parameters // 2)
    limit = net.size_of(half) + 3
    found = net.budget.solve_bytes(
        limit, net.size_of, allocator.counts, milestones=allocator.milestones
    )
    total = sum(found.values())
    assert net.size_of(found) <= limit
    for nearby in range(total - 100, total + 300):
        kept = allocator.counts(nearby)
        assert (net.size_of(kept) <= limit) == (sum(kept.values()) <= total)


def counting(calls: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which also notes every call of it."""

    def call(*arguments: Any) -> Any:
        calls.append(function.__name__)
        return function(*arguments)

    return call


@pytest.mark.parametrize("scope", ["global", "lamp"])
def test_weights_are_ranked_once_for_all_probes(monkeypatch, scope):
    """And of what a probe reads of them, only one bin of the histogram is not known before."""
    net = Net(SHAPES)
    net.state = {name: as_array(tensor) for name, tensor in net.state.items()}
    limit = net.size_of(net.allocator(scope).counts(200))
    calls: list[str] = []
    for name in ("score", "find_cuts", "leading_histogram", "members_of"):
        monkeypatch.setattr(allocation, name, counting(calls, getattr(allocation, name)))
    allocator = net.allocator(scope)
    once = {"score", "find_cuts", "leading_histogram"}
    assert {name: calls.count(name) for name in calls} == dict.fromkeys(once, len(SHAPES))
    calls.clear()
    net.budget.solve_bytes(limit, net.size_of, allocator.counts, milestones=allocator.milestones)
    assert set(calls) <= {"members_of"}
    assert len(calls) <= len(SHAPES)


def test_a_file_never_shrinks_when_a_matrix_keeps_more(net):
    """Also where a tensor is no longer packed, and where headers have shorter numbers."""
    contents = Contents(**net.contents)
    fqn = "encoder.lstm.weight_ih_l0"
    counts = {name: net.state[name].numel() // 2 for name in net.contents["prunable"]}
    numel = {name: net.state[name].numel() for name in counts}
    before = 0
    last = numel[fqn] + 1
    for count in (*range(1, last - 200, 9), *range(last - 200, last)):
        kept = {**counts, fqn: count}
        spec = SubnetSpec.from_counts(kept, numel)
        size = planned_bytes(net.state, kept, **vars(replace(contents, spec=spec)))
        assert size >= before
        before = size
