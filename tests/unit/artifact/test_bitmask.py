"""The bit-mask codec against plain oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_bytes import bytes_of

from omnisparse.artifact import bitmask
from omnisparse.artifact.layout import Kept, plan_tensor
from omnisparse.artifact.precision import PRECISIONS, restore_values, round_values, row_scales
from omnisparse.errors import FormatError

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def sparse(shape: tuple[int, int], density: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(shape, np.float32)
    weight[generator.random(shape) >= density] = 0
    return weight


@settings(max_examples=60)
@given(SHAPES, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 9), st.sampled_from([1, 64]))
def test_rows_restore_exactly_whatever_the_chunk(shape, density, seed, chunk):
    weight = sparse(shape, density, seed)
    before = bitmask.CHUNK_WEIGHTS
    bitmask.CHUNK_WEIGHTS = chunk
    try:
        bits, values = bitmask.pack_mask(weight != 0), weight[weight != 0]
        restored = bitmask.unpack_rows(bits, values, shape)
    finally:
        bitmask.CHUNK_WEIGHTS = before
    assert np.array_equal(restored, weight)
    assert np.array_equal(bitmask.count_bits(bits), (weight != 0).sum(axis=1))
    # The oracle: one bit at a time, least significant first.
    for row in range(shape[0]):
        for column in range(shape[1]):
            bit = bits[row, column // 8] >> (column % 8) & 1
            assert bool(bit) == bool(weight[row, column] != 0)


@settings(max_examples=60)
@given(
    SHAPES,
    st.sampled_from([(1, 1), (8, 1), (16, 1), (4, 4), (1, 3)]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.integers(0, 9),
    st.sampled_from([1, 64, 1 << 20]),
)
def test_blocks_restore_exactly_whatever_the_chunk(shape, block, density, seed, chunk):
    weight = sparse(shape, density, seed)
    before = bitmask.CHUNK_WEIGHTS
    bitmask.CHUNK_WEIGHTS = chunk
    try:
        bits, values = bitmask.pack_blocks(weight, block)
        restored = bitmask.unpack_blocks(bits, values, shape, block)
    finally:
        bitmask.CHUNK_WEIGHTS = before
    assert np.array_equal(restored, weight)
    expected = []
    for row in range(0, shape[0], block[0]):
        for column in range(0, shape[1], block[1]):
            tile = weight[row : row + block[0], column : column + block[1]]
            if (tile != 0).any():
                expected.append(tile.ravel())
    oracle = np.concatenate(expected) if expected else np.zeros(0, np.float32)
    assert np.array_equal(values, oracle)


def test_a_mask_that_contradicts_its_values_is_refused():
    weight = sparse((6, 13), 0.5, 1)
    bits, values = bitmask.pack_mask(weight != 0), weight[weight != 0]
    with pytest.raises(FormatError, match="keeps"):
        bitmask.unpack_rows(bits, values[:-1], (6, 13))
    with pytest.raises(FormatError, match="shape"):
        bitmask.unpack_rows(bits, values, (6, 20))
    bits[2, 1] |= 0x80
    with pytest.raises(FormatError, match="pad bits"):
        bitmask.unpack_rows(bits, values, (6, 13))


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_block_mask_that_contradicts_its_values_is_refused(extra):
    bits, values = bitmask.pack_blocks(sparse((16, 9), 0.1, 2), (8, 1))
    with pytest.raises(FormatError, match="keeps"):
        bitmask.unpack_blocks(bits, np.resize(values, values.size + extra), (16, 9), (8, 1))


@settings(max_examples=50)
@given(
    st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=40),
    st.sampled_from([p for p in PRECISIONS if p != "int8"]),
)
def test_rounding_keeps_every_non_zero(numbers, precision):
    values = np.array(numbers, np.float32)
    stored = round_values(values, precision)
    dtype = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[precision]
    restored = restore_values(stored, dtype)
    assert np.array_equal(restored != 0, values != 0)
    assert np.array_equal(np.sign(restored), np.sign(values))
    if precision == "bf16":
        oracle = torch.from_numpy(values).bfloat16().float().numpy()
        assert np.array_equal(restored[oracle != 0], oracle[oracle != 0])


def test_int8_errs_by_half_a_step_or_a_whole_one_next_to_zero():
    weight = sparse((30, 200), 0.7, 3) * np.float32(0.01)
    weight[4] = 0
    scales = row_scales(weight)[:, None]
    restored = round_values(weight, "int8", scales).astype(np.float32) * scales
    error = np.abs(restored - weight) / scales
    assert np.array_equal(restored != 0, weight != 0)
    assert error[np.abs(weight) >= scales / 2 * np.ones_like(weight)].max() <= 0.5001
    assert error.max() <= 1


@pytest.mark.parametrize("largest", [3.4028234e38, -3.4028234e38, 1e38, 1e-45])
def test_int8_of_the_largest_and_smallest_numbers_is_finite(largest):
    weight = np.array([[largest, 0.0, largest / 2]], np.float32)
    scales = row_scales(weight)
    stored = round_values(weight, "int8", scales[:, None])
    restored = restore_values(stored, "I8") * scales[:, None]
    assert np.isfinite(restored).all()
    assert restored[0, 0] == pytest.approx(largest, rel=1e-6, abs=2e-38)


def test_fp16_overflow_is_refused():
    with pytest.raises(ValueError, match="fp16"):
        round_values(np.array([1e5], np.float32), "fp16")


@pytest.mark.parametrize("block", [(1, 1), (8, 1), (16, 1)])
@pytest.mark.parametrize(("precision", "bits"), [("fp32", 32), ("fp16", 16), ("int8", 8)])
def test_planned_bytes_are_the_accountants_plus_named_overheads(precision, bits, block):
    shape, kept = (256, 1024), 256 * 64
    plan = plan_tensor(
        "lstm.weight_hh_l0",
        torch.empty(shape, device="meta"),
        num_kept=Kept(kept, kept),
        precision=precision,
        block=block,
    )
    overhead = 16  # P.shape
    overhead += 16 if block != (1, 1) else 0  # P.block
    overhead += 4 * shape[0] if precision == "int8" else 0  # P.scale
    assert plan.num_bytes == bytes_of(shape, kept, bits, block) + overhead


def test_a_tensor_is_packed_only_where_that_is_smaller():
    def packing(kept: int, fqn: str = "lstm.weight_hh_l0") -> str:
        tensor = torch.empty(64, 64, device="meta")
        return plan_tensor(fqn, tensor, num_kept=Kept(kept, kept), precision="fp32").packing

    assert packing(64 * 64) == "dense"
    assert packing(64 * 64 * 31 // 32) == "dense"
    assert packing(64 * 64 // 2) == "bitmask"
    assert math.prod((64, 64)) == 4096


def test_row_offsets_are_full_for_linear_weights_and_empty_for_lstm_weights():
    tensor = torch.empty(64, 64, device="meta")
    for fqn, prefix, length in (("a.weight", "a", 64), ("a.weight_hh_l0", "a.weight_hh_l0", 0)):
        plan = plan_tensor(fqn, tensor, num_kept=Kept(9, 9), precision="fp32")
        fields = {field.key: field for field in plan.fields}
        assert fields[f"{prefix}.row_offsets"].shape == (length,)
