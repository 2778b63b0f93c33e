from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.sparsity.apportion import apportion

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=6)


@given(SIZES, st.data())
def test_sum_is_exact_and_bounds_hold(sizes: list[int], data: st.DataObject) -> None:
    lower = [data.draw(st.integers(0, size)) for size in sizes]
    shares = [data.draw(st.floats(0.01, 100)) for _ in sizes]
    total = data.draw(st.integers(sum(lower), sum(sizes)))
    counts = apportion(total, shares, lower, sizes)
    assert sum(counts) == total
    assert all(low <= n <= high for low, n, high in zip(lower, counts, sizes, strict=True))


@given(SIZES, st.data())
def test_no_entry_shrinks_when_the_total_grows(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes) - 1))
    ones = [0] * len(sizes)
    smaller, larger = (apportion(n, sizes, ones, sizes) for n in (total, total + 1))
    assert all(a <= b for a, b in zip(smaller, larger, strict=True))


@given(SIZES, st.floats(0, 1))
def test_every_entry_is_near_its_share(sizes: list[int], density: float) -> None:
    total = round(density * sum(sizes))
    counts = apportion(total, sizes, [0] * len(sizes), sizes)
    for count, size in zip(counts, sizes, strict=True):
        assert abs(count - size * total / sum(sizes)) <= max(1, len(sizes) / 2)


def test_large_counts_are_exact() -> None:
    sizes = [5600 * 1400 + 1] * 9 + [4096 * 2500]
    assert sum(apportion(12_345_679, sizes, [1] * 10, sizes)) == 12_345_679


def test_equal_entries_differ_by_one_and_the_first_gain() -> None:
    assert apportion(5, [10, 10, 10], [0, 0, 0], [10, 10, 10]) == [2, 2, 1]


def test_total_out_of_range_names_the_range() -> None:
    with pytest.raises(ValueError, match="legal: 2 to 20"):
        apportion(21, [10, 10], [1, 1], [10, 10])
