from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import BLOCKS, weights
from torch import Tensor

from omnisparse.sparsity import allocation
from omnisparse.sparsity import keys as keys_module
from omnisparse.sparsity.allocation import Allocator, allocate
from omnisparse.sparsity.arrays import host
from omnisparse.sparsity.budget import floors_of
from omnisparse.sparsity.masks import apply_mask, mask_from_count, masked_tensors

MATRICES = st.lists(weights(12), min_size=1, max_size=4).map(
    lambda drawn: {f"layer{index}": weight for index, weight in enumerate(drawn)}
)
SCOPES = st.sampled_from(["layer", "global", "lamp"])


@given(MATRICES, SCOPES, st.data())
def test_allocation_is_exact_and_keeps_every_layer_alive(
    matrices: dict[str, Tensor], scope: str, data: st.DataObject
) -> None:
    total = data.draw(st.integers(len(matrices), sum(w.numel() for w in matrices.values())))
    counts = allocate(matrices, total, scope)
    assert sum(counts.values()) == total
    assert all(1 <= counts[fqn] <= weight.numel() for fqn, weight in matrices.items())


@pytest.mark.parametrize("chunk", [3, 1 << 18])
@given(MATRICES, SCOPES, st.sampled_from(BLOCKS), st.data())
def test_numpy_and_torch_allocate_alike(
    chunk: int, matrices: dict[str, Tensor], scope: str, block: tuple[int, int], data: st.DataObject
) -> None:
    arrays = {fqn: host(weight) for fqn, weight in matrices.items()}
    sizes = {fqn: weight.numel() for fqn, weight in matrices.items()}
    low = sum(floors_of(sizes, 0.1, block).values())
    totals = data.draw(st.lists(st.integers(low, sum(sizes.values())), min_size=1, max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "CHUNK_WEIGHTS", chunk)
        patch.setattr(allocation, "CHUNK_WEIGHTS", chunk)
        allocator = Allocator(arrays, scope, 0.1, block)
        found = [allocator.counts(total) for total in totals]
    assert found == [allocate(matrices, total, scope, 0.1, block) for total in totals]


@given(MATRICES, SCOPES, st.data())
def test_allocations_of_larger_totals_contain_smaller(
    matrices: dict[str, Tensor], scope: str, data: st.DataObject
) -> None:
    dense = sum(weight.numel() for weight in matrices.values())
    if dense > len(matrices):
        total = data.draw(st.integers(len(matrices), dense - 1))
        small, large = allocate(matrices, total, scope), allocate(matrices, total + 1, scope)
        assert all(small[fqn] <= large[fqn] for fqn in matrices)


@given(st.sampled_from(BLOCKS), SCOPES, st.integers(1, 20))
def test_block_allocation_loses_less_than_a_block_on_even_grids(
    block: tuple[int, int], scope: str, part: int
) -> None:
    matrices = {"a": torch.randn(48, 12), "b": torch.randn(16, 24)}
    size = block[0] * block[1]
    total = 96 + (48 * 12 + 16 * 24 - 96) * part // 20
    counts = allocate(matrices, total, scope, block=block)
    assert total - size < sum(counts.values()) <= total
    assert all(count % size == 0 for count in counts.values())


def test_global_is_one_threshold_over_all_weights() -> None:
    matrices = {"a": torch.randn(20, 20), "b": torch.randn(30, 10) * 3}
    counts = allocate(matrices, 200, "global")
    everything = torch.cat([weight.flatten().abs() for weight in matrices.values()])
    threshold = everything.sort(descending=True).values[199]
    expected = {fqn: int((w.abs() >= threshold).sum()) for fqn, w in matrices.items()}
    assert counts == expected


def test_lamp_matches_its_definition() -> None:
    matrices = {"a": torch.randn(15, 8), "b": torch.randn(9, 9) * 4}
    scores = []
    for fqn, weight in matrices.items():
        squares = weight.double().flatten().square()
        scores += [(float(x / squares[squares >= x].sum()), fqn) for x in squares]
    winners = [fqn for _, fqn in sorted(scores, reverse=True)[:70]]
    expected = {fqn: winners.count(fqn) for fqn in matrices}
    assert allocate(matrices, 70, "lamp") == expected


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
def test_floor_holds_for_a_layer_of_small_weights(scope: str) -> None:
    matrices = {"large": torch.randn(40, 40), "small": torch.randn(40, 40) * 1e-6}
    counts = allocate(matrices, 400, scope, floor=0.05)
    assert counts["small"] >= 80
    assert sum(counts.values()) == 400


@pytest.mark.parametrize("scope", ["global", "lamp"])
def test_dtypes_may_be_mixed(scope: str) -> None:
    matrices = {"a": torch.randn(9, 9).half(), "b": torch.randn(9, 9).double()}
    assert sum(allocate(matrices, 50, scope).values()) == 50


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_ragged_shapes_lose_less_than_a_block_each(scope: str, block: tuple[int, int]) -> None:
    matrices = {"a": torch.randn(35, 11), "b": torch.randn(13, 29)}
    counts = allocate(matrices, 400, scope, block=block)
    kept = sum(
        int(mask_from_count(weight, counts[fqn], block).sum()) for fqn, weight in matrices.items()
    )
    assert 400 - 2 * block[0] * block[1] < kept <= 400


def test_illegal_totals_name_the_range() -> None:
    matrices = {"a": torch.randn(4, 5), "b": torch.randn(4, 5)}
    with pytest.raises(ValueError, match="total_kept 1 is out of range; legal: 2 to 40"):
        allocate(matrices, 1)
    with pytest.raises(ValueError, match="legal: 20 to 40"):
        allocate(matrices, 5, "global", floor=0.5)
    with pytest.raises(ValueError, match="scope 'network' is not known; legal: layer, global"):
        allocate(matrices, 5, "network")
    with pytest.raises(ValueError, match=r"floor 1.5"):
        allocate(matrices, 5, floor=1.5)


def test_applied_masks_leave_positive_zeros() -> None:
    weight = torch.tensor([[-1.0, 2.0]])
    pruned = apply_mask(weight, torch.tensor([[False, True]]))
    assert torch.equal(pruned, torch.tensor([[0.0, 2.0]]))
    assert not bool(torch.signbit(pruned).any())


def test_walking_a_state_makes_every_size_from_one_ranking() -> None:
    state = {"w": torch.randn(8, 8), "bias": torch.randn(8), "v": torch.randn(4, 4)}
    walked = dict((fqn, masks) for fqn, _, masks in masked_tensors(state, [{"w": 9}, {"v": 3}]))
    assert walked["bias"] is None
    assert [int(mask.sum()) for mask in walked["w"]] == [9, 64]
    assert torch.equal(walked["v"][1], mask_from_count(state["v"], 3))
    with pytest.raises(ValueError, match="request names unknown layers: x; legal names: w, bias"):
        next(masked_tensors(state, [{"x": 1}]))
