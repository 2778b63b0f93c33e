from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import BLOCKS, DTYPES, select_slowly, weights
from torch import Tensor

from omnisparse.sparsity import keys as keys_module
from omnisparse.sparsity.arrays import descending_order, host
from omnisparse.sparsity.cuts import find_cuts
from omnisparse.sparsity.keys import Keys
from omnisparse.sparsity.ranking import rank

NORMS = st.sampled_from(["l1", "l2"])


@given(weights(), st.data())
def test_element_masks_equal_slow_selection(weight: Tensor, data: st.DataObject) -> None:
    requests = data.draw(st.lists(st.integers(0, weight.numel()), min_size=1, max_size=5))
    for request, mask in zip(requests, rank(weight).masks(requests), strict=True):
        assert int(mask.sum()) == request
        assert torch.equal(mask, select_slowly(weight, request))


@given(weights(), st.sampled_from(BLOCKS), NORMS, st.data())
def test_block_masks_equal_slow_selection(
    weight: Tensor, block: tuple[int, int], norm: str, data: st.DataObject
) -> None:
    if norm == "l1" or weight.dtype != torch.float64:
        # The slow sum runs over blocks in the same order of elements.
        request = data.draw(st.integers(0, weight.numel()))
        ranking = rank(weight, block, norm)
        cut = ranking.cuts([request])[0]
        mask = ranking.mask_at(cut)
        assert torch.equal(mask, select_slowly(weight, request, block, norm))
        assert int(mask.sum()) == cut.num_kept <= request


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("of_numpy", [True, False])
def test_rows_that_blocks_do_not_tile_are_kept_like_all_others(norm: Any, of_numpy: bool) -> None:
    """1,000 rows in blocks of 16: the last 8, an LSTM's output gates, were all zero at 90 %."""
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((1000, 400))).float()
    ranking = rank(weight.numpy() if of_numpy else weight, (16, 1), norm)
    (cut,) = ranking.cuts([40_000])
    mask = torch.as_tensor(ranking.mask_at(cut))
    assert int(mask.sum()) == cut.num_kept
    assert 40_000 - 16 < cut.num_kept <= 40_000
    assert 0.05 < float(mask[-8:].float().mean()) < 0.25  # means of 8 vary more than those of 16
    assert float(mask[:-8].float().mean()) == pytest.approx(0.1, abs=0.002)
    tiled = weight[:992]
    (whole,) = rank(tiled, (16, 1), norm).masks([int(mask[:-8].sum())])
    assert torch.equal(whole, mask[:-8])  # the order among whole blocks is what it was


@given(weights(), st.sampled_from(BLOCKS), st.data())
def test_masks_are_nested(weight: Tensor, block: tuple[int, int], data: st.DataObject) -> None:
    requests = sorted(data.draw(st.lists(st.integers(0, weight.numel()), min_size=2, max_size=6)))
    masks = list(rank(weight, block).masks(requests))
    for small, large in itertools.pairwise(masks):
        assert not bool((small & ~large).any())


@given(weights(), st.sampled_from(BLOCKS))
def test_extremes(weight: Tensor, block: tuple[int, int]) -> None:
    nothing, everything = rank(weight, block).masks([0, weight.numel()])
    assert not bool(nothing.any())
    assert bool(everything.all())


@given(weights(), st.sampled_from(BLOCKS), st.data())
def test_one_pass_for_all_sizes_equals_one_pass_each(
    weight: Tensor, block: tuple[int, int], data: st.DataObject
) -> None:
    requests = data.draw(st.lists(st.integers(0, weight.numel()), min_size=1, max_size=8))
    together = rank(weight, block).cuts(requests)
    assert together == [rank(weight, block).cuts([request])[0] for request in requests]


@given(weights(), st.sampled_from(BLOCKS))
def test_positions_are_the_order(weight: Tensor, block: tuple[int, int]) -> None:
    ranking = rank(weight, block)
    order = torch.sort(ranking.keys, descending=True, stable=True).indices
    assert torch.equal(descending_order(ranking.keys), order)
    assert torch.equal(ranking.positions()[order].long(), torch.arange(order.numel()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_lowest_index(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1, -2, 2], [0, 2, -2]], dtype=dtype)
    mask = next(rank(weight).masks([3]))
    assert mask.tolist() == [[False, True, True], [False, True, False]]


def test_ranking_ignores_signs_and_negative_zero() -> None:
    weight = torch.tensor([[-0.0, 0.0, -3.0, 1.0]])
    assert next(rank(weight).masks([3])).tolist() == [[True, False, True, True]]


def test_float_neighbours_are_told_apart() -> None:
    weight = torch.full((64,), 0.5)
    weight[40] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    assert int(next(rank(weight).masks([1])).nonzero()) == 40


@pytest.mark.parametrize("block", [(1, 1), (8, 1)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_name_the_tensor(block: tuple[int, int], value: float) -> None:
    weight = torch.randn(16, 4)
    weight[3, 2] = value
    with pytest.raises(ValueError, match=r"encoder.weight_ih_l0 hold NaN or infinite"):
        rank(weight, block, name="encoder.weight_ih_l0")


def test_block_scores_may_exceed_the_weights_range() -> None:
    weight = torch.full((16, 2), 1e300, dtype=torch.float64)
    assert int(next(rank(weight, (8, 1), "l2").masks([16])).sum()) == 16


def test_an_empty_tensor_has_an_empty_ranking() -> None:
    for weight in (torch.empty(0, 3), np.empty((0, 3), np.float32)):
        assert next(rank(weight).masks([0])).shape == (0, 3)
        assert len(rank(weight).positions()) == 0


def test_views_and_higher_ranks() -> None:
    weight = torch.randn(6, 4, 3).transpose(0, 1)
    mask = next(rank(weight).masks([20]))
    assert mask.shape == weight.shape
    assert float(weight[mask].abs().min()) >= float(weight[~mask].abs().max())


def test_block_and_count_must_be_legal() -> None:
    with pytest.raises(ValueError, match="block"):
        rank(torch.randn(4, 4), (0, 1))
    with pytest.raises(ValueError, match="num_kept 17 is out of range; 0 to 16"):
        rank(torch.randn(4, 4)).cuts([17])
    with pytest.raises(ValueError, match="dtype"):
        rank(torch.ones(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="norm 'l3'"):
        rank(torch.randn(4, 4), (2, 2), "l3")


def test_several_matrices_share_one_ranking() -> None:
    pair = [torch.randn(30), torch.randn(50)]
    keys = [rank(part).keys for part in pair]
    cut = find_cuts([Keys(part) for part in keys], [33])[0]
    whole = next(rank(torch.cat(pair)).masks([33]))
    assert torch.equal(torch.cat(keys) > cut.threshold, whole)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
@given(weights(), st.sampled_from(BLOCKS), NORMS, st.data())
def test_numpy_and_torch_rank_alike(
    chunk: int, weight: Tensor, block: tuple[int, int], norm: str, data: st.DataObject
) -> None:
    """What extraction cuts from a file is what training masks, whatever the chunks."""
    requests = data.draw(st.lists(st.integers(0, weight.numel()), min_size=1, max_size=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "CHUNK_WEIGHTS", chunk)
        ours, theirs = rank(host(weight), block, norm), rank(weight, block, norm)
        assert ours.cuts(requests) == theirs.cuts(requests)
        for mask, expected in zip(ours.masks(requests), theirs.masks(requests), strict=True):
            assert np.array_equal(mask, expected.numpy())
        assert np.array_equal(ours.positions(), theirs.positions().numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_numpy_refuses_what_torch_refuses(dtype: torch.dtype, value: float) -> None:
    weight = torch.randn(16, 4).to(dtype)
    weight[3, 2] = value
    for block in ((1, 1), (8, 1)):
        with pytest.raises(ValueError, match=r"a.weight hold NaN or infinite"):
            rank(host(weight), block, "l2", name="a.weight")
    with pytest.raises(ValueError, match="dtype int64"):
        rank(np.ones(3, np.int64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_and_cpu_agree(dtype: torch.dtype, block: tuple[int, int]) -> None:
    weight = (torch.randn(333, 130) * 8).round().div(8).to(dtype)
    requests = [0, 1, 4000, 21645, weight.numel()]
    on_cpu, on_gpu = rank(weight, block, "l2"), rank(weight.cuda(), block, "l2")
    for expected, found in zip(on_cpu.masks(requests), on_gpu.masks(requests), strict=True):
        assert torch.equal(expected, found.cpu())
    assert torch.equal(on_cpu.positions(), on_gpu.positions().cpu())
