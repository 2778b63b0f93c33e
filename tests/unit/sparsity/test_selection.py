"""Walking a matrix in chunks of rows selects what whole masks select."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BLOCKS, weights
from torch import Tensor

from omnisparse.sparsity import keys
from omnisparse.sparsity.arrays import as_floats, host
from omnisparse.sparsity.masks import mask_from_count
from omnisparse.sparsity.selection import kept_rows


@pytest.mark.parametrize("chunk", [1, 40, 1 << 18])
@pytest.mark.parametrize("drop_zeros", [False, True])
@given(weights(), st.sampled_from(BLOCKS), st.data())
def test_chunks_are_what_masks_of_the_whole_keep(
    chunk: int, drop_zeros: bool, weight: Tensor, block: tuple[int, int], data: st.DataObject
) -> None:
    array = host(weight)
    # The sizes in any order, and repeated: what is picked from a larger one must not depend on it.
    requests = data.draw(st.lists(st.integers(0, weight.numel()), min_size=1, max_size=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "CHUNK_WEIGHTS", chunk)
        walked = list(kept_rows(array, requests, block, drop_zeros=drop_zeros))
    floats = as_floats(array, "float32")
    assert np.array_equal(np.concatenate([rows.weights for rows in walked]), array)
    if all(request == weight.numel() for request in requests):
        return  # nothing is pruned: whole rows
    for index, request in enumerate(requests):
        mask = mask_from_count(weight, request, block).numpy()
        if drop_zeros:
            mask = mask & (floats != 0)
        found = np.concatenate([rows.mask(index) for rows in walked])
        assert np.array_equal(found, mask)
        values = np.concatenate([rows.values(index) for rows in walked])
        assert np.array_equal(values, array[mask])
        masked = np.concatenate([rows.masked(index) for rows in walked])
        assert np.array_equal(masked, np.where(mask, floats, 0))
        for rows in walked:
            kept = as_floats(rows.values(index), "float32")
            assert not rows.is_sound(index) or (kept.all() and np.isfinite(kept).all())


def test_where_nothing_is_pruned_rows_are_whole() -> None:
    array = np.array([[1.0, 0.0], [0.0, -2.0]], np.float32)
    (rows,) = kept_rows(array)
    assert rows.mask(0).tolist() == [[True, False], [False, True]]
    assert rows.values(0).tolist() == [1.0, -2.0]
    assert np.array_equal(rows.masked(0), array)
    (integers,) = kept_rows(np.array(7))
    assert integers.weights.tolist() == [[7]]
