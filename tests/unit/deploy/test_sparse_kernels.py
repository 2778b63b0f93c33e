"""Every kernel gives numpy's product: all packings, types, shapes and instruction sets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnisparse.artifact import bitmask
from omnisparse.artifact.packed import PackedTensor
from omnisparse.artifact.precision import restore_values, round_values
from omnisparse.deploy import native
from omnisparse.deploy.cost import fastest, product_ns
from omnisparse.deploy.packing import pack
from omnisparse.deploy.sparse_kernels import PackedMatrix, Room

TAGS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8": "I8"}


def usable_levels() -> list[str]:
    fallbacks = ["numpy", "numba"] if find_spec("numba") else ["numpy"]
    library = native._load()
    if library is None:
        return fallbacks
    best = native.LEVELS[library.omni_level()]
    if best == "neon":
        return [*fallbacks, "plain", "neon"]
    return [*fallbacks, *native.LEVELS[: native.LEVELS.index(best) + 1]]


@pytest.fixture
def at_level(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def choose(level: str) -> None:
        monkeypatch.setenv(native.CHOICE, level)
        native.kernels.cache_clear()

    yield choose
    monkeypatch.undo()
    native.kernels.cache_clear()


def stored(
    rows: int,
    columns: int,
    density: float,
    block: tuple[int, int] | None,
    precision: Any,
    seed: int,
) -> tuple[PackedTensor, np.ndarray]:
    """A matrix as a file holds it, and the weights it stands for."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    high, wide = block or (1, 1)
    kept = rng.random((-(-rows // high), -(-columns // wide))) < density
    weight *= np.repeat(np.repeat(kept, high, 0), wide, 1)[:rows, :columns]
    scale = np.full(rows, 0.03, np.float32) if precision == "int8" else None
    if scale is not None:
        scale[::3] = 0.05
        values = round_values(weight, precision, scale[:, None])
    else:
        values = round_values(weight, precision)
    exact = restore_values(values, TAGS[precision]).astype(np.float64)
    if scale is not None:
        exact = exact * scale[:, None]
    tag = TAGS[precision]
    if block is None:
        tensor = PackedTensor("w", (rows, columns), "dense", tag, values, scale=scale)
    elif block == (1, 1):
        bits, mask = bitmask.pack_mask(values != 0), values != 0
        tensor = PackedTensor("w", (rows, columns), "bitmask", tag, values[mask], bits, scale=scale)
    else:
        bits, packed = bitmask.pack_blocks(values, block)
        tensor = PackedTensor("w", (rows, columns), "block", tag, packed, bits, block, scale)
    return tensor, exact


def check_products(matrix: PackedMatrix, exact: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(matrix.rows).astype(np.float32)
    for count in (1, 3, 5, 16, 21):
        vectors = rng.standard_normal((count, matrix.columns)).astype(np.float32)
        expected = vectors @ exact.T + bias
        bound = 1e-6 * (np.abs(vectors) @ np.abs(exact).T + np.abs(bias)) + 1e-6
        found = matrix.products(vectors, bias)
        assert (np.abs(found - expected) <= bound).all(), (matrix.kind, matrix.height, count)


KINDS: dict[Any, tuple[str, ...]] = {
    None: ("dense", "csr", "panel", "slice"),
    (1, 1): ("dense", "csr", "panel", "slice"),
    (8, 1): ("dense", "block"),
    (16, 1): ("dense", "block"),
    (4, 4): ("dense", "csr", "panel", "slice"),
}


@settings(max_examples=40)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 150),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 1.0]),
    block=st.sampled_from(list(KINDS)),
    precision=st.sampled_from(sorted(TAGS)),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_numpy(
    rows: int, columns: int, density: float, block: Any, precision: str, seed: int
) -> None:
    tensor, exact = stored(rows, columns, density, block, precision, seed)
    assert sum(map(len, tensor.row_chunks(3))) == rows
    for level in usable_levels():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(native.CHOICE, level)
            native.kernels.cache_clear()
            for kind in KINDS[block]:
                if kind in ("panel", "slice") and level != "avx512":
                    with pytest.raises(ValueError, match="AVX-512"):
                        pack(tensor, kind)  # type: ignore[arg-type]
                    continue
                check_products(pack(tensor, kind), exact, seed)  # type: ignore[arg-type]
    native.kernels.cache_clear()


@pytest.mark.parametrize("block", [(1, 1), (8, 1), (16, 1)])
def test_a_matrix_of_many_chunks(block: tuple[int, int]) -> None:
    tensor, exact = stored(1001, 700, 0.2, block, "fp16", 3)
    check_products(pack(tensor), exact, 3)
    check_products(pack(tensor, "dense"), exact, 3)


@pytest.mark.parametrize("shift", [0, 4, 20])
def test_vectors_may_lie_anywhere(shift: int) -> None:
    tensor, exact = stored(33, 65, 0.3, (8, 1), "fp32", 1)
    room = np.zeros(65 + 16, np.float32)
    vector = room[shift // 4 : shift // 4 + 65]
    vector[:] = np.random.default_rng(0).standard_normal(65)
    np.testing.assert_allclose(pack(tensor).products(vector[None])[0], exact @ vector, atol=1e-5)


def test_a_thinned_matrix_takes_no_dense_room() -> None:
    cases: list[tuple[Any, Any, str, float]] = [
        ((8, 1), "block", "fp32", 0.12),
        ((1, 1), "csr", "fp16", 0.22),
        ((1, 1), "csr", "fp32", 0.17),
    ]
    for block, kind, precision, limit in cases:
        tensor, _ = stored(640, 800, 0.1, block, precision, 0)
        dense = 640 * 800 * tensor.values.itemsize
        assert pack(tensor, kind).num_bytes < limit * dense


def test_stored_arrays_are_aligned_padded_and_apart() -> None:
    room = Room()
    arrays = [room.empty(shape, np.float16) for shape in ((7, 3), (0,), (5,), (17, 1 << 20), (9,))]
    for number, array in enumerate(arrays):
        array[:] = number
        assert array.ctypes.data % 64 == 0
        base: Any = array.base
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert base.ctypes.data + base.nbytes >= array.ctypes.data + array.nbytes + 64
    for number, array in enumerate(arrays):
        assert (array == number).all()


def test_a_system_without_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("mmap.MADV_HUGEPAGE", raising=False)
    array = Room().empty((7, 3), np.float32)
    assert array.ctypes.data % 64 == 0
    assert not array.any()


def test_an_unknown_level_is_told_once(at_level: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if "plain" not in usable_levels():
        pytest.skip("no compiled kernels here")
    at_level("avx9000")
    before = native.kernels()
    assert native.kernels() == before
    told = capsys.readouterr().err
    assert told.count("avx9000") == 1
    assert "legal here: numpy, numba, plain" in told


def test_a_processor_without_the_instructions_is_told_once(
    at_level: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = native._load()
    if library is None or native.LEVELS[library.omni_level()] == "neon":
        pytest.skip("no compiled kernels of x86-64 here")
    monkeypatch.setattr(library, "omni_level", lambda: 0)
    monkeypatch.setattr(native, "_load", lambda: library)
    at_level("")
    assert native.kernels() == native.kernels() == (library, 0)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "neither AVX2 nor NEON: plain kernels are used instead" in told
    tensor, exact = stored(33, 65, 0.3, (1, 1), "fp32", 1)
    check_products(pack(tensor), exact, 1)


@pytest.mark.parametrize("numba", ["there", "absent", "broken"])
def test_what_stands_in_for_missing_kernels_is_told_once(
    numba: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "LIBRARY", "not_there.so")
    there = numba == "there"
    monkeypatch.setattr(native, "find_spec", lambda name: None if numba == "absent" else name)
    # As where numba refuses the numpy that is installed: it is there, but its import fails.
    monkeypatch.setitem(sys.modules, "numba", ModuleType("numba") if there else None)
    native.kernels.cache_clear()
    expected = (None, native.NUMBA) if there else (None, 0)
    assert native.kernels() == native.kernels() == expected
    told = capsys.readouterr().err
    assert told.count("no compiled kernels") == 1
    assert f"{'numba' if there else 'numpy'} does it, slower" in told
    monkeypatch.setenv(native.CHOICE, "numba")
    native.kernels.cache_clear()
    assert native.kernels() == expected
    told = capsys.readouterr().err
    assert told == "" if there else "omnisparse[numba]" in told
    monkeypatch.undo()
    native.kernels.cache_clear()


def test_missing_kernels_are_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "LIBRARY", "not_there.so")
    native.kernels.cache_clear()
    tensor, exact = stored(20, 30, 0.3, (8, 1), "fp32", 1)
    check_products(pack(tensor), exact, 1)
    assert capsys.readouterr().err.count("does it, slower") == 1
    monkeypatch.undo()
    native.kernels.cache_clear()


def test_the_model_keeps_what_is_dense_dense() -> None:
    shape = (1024, 1024)
    numel = 1024 * 1024
    for level in (None, native.NUMBA, 0, 1, 2, 3):
        assert fastest(shape, numel, 0, 4, level) == "dense"
        assert fastest(shape, numel // 8, 8, 4, level) == "dense"
        assert fastest(shape, numel // 100, 0, 4, level) != "dense"
        assert fastest(shape, numel // 80, 8, 2, level) == "block"
    assert fastest((4, 1 << 17), 4, 0, 4, 2) == "dense"  # 16 bits do not tell such columns apart
    assert product_ns("dense", shape, numel, 0, 2, 2) < product_ns("dense", shape, numel, 0, 4, 2)
    assert fastest((1024, 256), 60_000, 0, 4, 2) == "slice"  # lies in the cache
    assert fastest((5600, 1400), 784_000, 0, 4, 2) == "panel"  # comes from memory
    assert fastest((1024, 256), 6_000, 0, 4, 1) == "csr"
