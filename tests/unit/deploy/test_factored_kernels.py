"""Factors of other schemes as two matrices, in every stored type."""

from __future__ import annotations

import numpy as np
import pytest

from omnisparse.artifact.packed import PackedTensor
from omnisparse.deploy.factored import copies_of, for_each_output, on_diagonal, projection_of

STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8}


def stored(shape: tuple[int, int], dtype: str) -> PackedTensor:
    numbers = np.random.default_rng(0).integers(1, 9, shape)
    values = numbers.astype(np.float32)
    if dtype == "BF16":
        held = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        held = values.astype(STORED[dtype])
    scale = np.arange(1, shape[0] + 1, dtype=np.float32) if dtype == "I8" else None
    return PackedTensor("w", shape, "dense", dtype, held, scale=scale)


@pytest.mark.parametrize("dtype", sorted(STORED))
def test_blocks_have_the_values_and_ones(dtype: str) -> None:
    tensor = stored((3, 5), dtype)
    whole = for_each_output(tensor, 2, 4).floats()
    expected = np.zeros((10, 14), np.float32)
    expected[:3, :5] = expected[3:6, 5:10] = tensor.floats()
    expected[6:, 10:] = np.eye(4)
    np.testing.assert_array_equal(whole, expected)
    gates = stored((8, 3), dtype)
    whole = on_diagonal(gates, 4).floats()
    assert whole.shape == (8, 12)
    for index, part in enumerate(np.split(gates.floats(), 4)):
        rows = whole[2 * index : 2 * index + 2]
        np.testing.assert_array_equal(rows[:, 3 * index : 3 * index + 3], part)
        assert np.count_nonzero(rows) == np.count_nonzero(part)


def test_what_a_matrix_reads() -> None:
    names = {
        "encoder.layers.0.parametrizations.weight_hh_l0.original0",
        "encoder.layers.0.parametrizations.weight_hh_l0.original1",
        "encoder.layers.1.parametrizations.weight_ih_l0.original0",
    }
    shared = "encoder.layers.0.parametrizations.weight_hh_l0.original1"
    assert projection_of("encoder.layers.1.weight_ih_l0", names) == shared
    for name in ("encoder.layers.0.weight_hh_l0", "encoder.layers.2.weight_ih_l0", "output.weight"):
        assert projection_of(name, names) is None
    assert copies_of("encoder.layers.1.weight_ih_l0", 20, 10) == 2
    assert copies_of("decoder.layers.1.weight_ih_l0", 20, 10) == 1
