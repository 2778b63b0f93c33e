"""Whatever a matrix holds and however it is stored, it comes back: property-based."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omnisparse.artifact import inspect_artifact, planned_bytes, read_artifact, write_artifact
from omnisparse.artifact.packing import count_kept
from omnisparse.artifact.tensorfile import TensorFile
from omnisparse.sparsity.keys import CHUNK_WEIGHTS


@pytest.fixture(autouse=True, scope="module")
def _without_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


BLOCKS = [(1, 1), (8, 1), (16, 1), (4, 4)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
STEP = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of rounding to a precision."""
LARGEST = {"fp32": torch.inf, "fp16": 65519.0, "bf16": 3.3e38, "int8": torch.inf}
SMALLEST = {"fp32": 0.0, "fp16": 2.0**-24, "bf16": 1e-40}
"""Kept weights below become the smallest number of their sign, or lose digits."""


@st.composite
def matrices(draw: st.DrawFn, block: tuple[int, int]) -> Tensor:
    """Normal, tied, equal, zero, tiny or huge weights of any dtype, zero in some whole blocks."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    scale = draw(st.sampled_from([1.0, 1.0, 0.0, 1e-7, 1e4, 1e30]))
    if draw(st.booleans()):
        values = (values * 2).round()
    elif draw(st.booleans()):
        values = values.sign()
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    grid = torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=generator) < density
    mask = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
    weight = (values * scale).where(mask, torch.zeros((), dtype=torch.float64))
    weight = weight.to(draw(st.sampled_from(DTYPES)))
    return weight.where(weight.isfinite(), torch.ones((), dtype=weight.dtype))


def largest_error(weight: Tensor, precision: str) -> Tensor:
    """What rounding may change, weight by weight."""
    if precision == "int8":
        # Half a step of the row's scale; a whole one where a weight must not become zero.
        return weight.abs().amax(1, keepdim=True).expand_as(weight) / 127 * 1.001
    return weight.abs() * STEP[precision] + SMALLEST[precision]


@settings(max_examples=100)
@given(
    st.sampled_from(BLOCKS).flatmap(lambda block: st.tuples(st.just(block), matrices(block))),
    st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
    st.sampled_from(["bitmask", "dense"]),
)
def test_any_matrix_survives(drawn, precision, format):
    block, weight = drawn
    state = {
        "lstm.weight_hh_l0": weight,
        "joiner.weight": weight.flip(0).contiguous(),
        "joiner.bias": torch.linspace(-1, 1, weight.shape[0]).to(weight.dtype),
        "steps": torch.tensor([3, 4]),
    }
    options = {
        "model": {}, "tokenizer": b"t", "tokens_txt": "a", "features": {}, "source": {},
        "dense_parameters": sum(t.numel() for t in state.values()) - 2, "buffers": ["steps"],
        "prunable": ["lstm.weight_hh_l0", "joiner.weight"],
        "precision": precision, "block": block, "format": format,
    }  # fmt: skip
    exact = weight.float()
    with TemporaryDirectory() as folder:
        out = Path(folder) / "a"
        if exact.abs().max() > LARGEST[precision]:
            with pytest.raises(ValueError, match="too large for precision"):
                write_artifact(out, state=state, **options)
            assert not out.exists()
            return
        info = write_artifact(out, state=state, **options)
        kept = {name: count_kept(state[name], block) for name in options["prunable"]}
        assert info.bytes == planned_bytes(state, kept, **options)
        report = inspect_artifact(out)
        # Kept weights that are zero (and, flipped, blocks elsewhere) look like scattered zeros.
        assert [line for line in report["problems"] if "are scattered" not in line] == []
        assert report["nonzero"] == info.nonzero == 2 * kept["joiner.weight"].nonzero + len(weight)
        restored = read_artifact(out).state
    assert list(restored) == list(state)
    assert torch.equal(restored["steps"], state["steps"])
    for name, expected in (("lstm.weight_hh_l0", exact), ("joiner.weight", exact.flip(0))):
        found = restored[name]
        assert found.dtype == torch.float32
        # The places of zeros, and the signs, are exact at every precision.
        assert torch.equal(found.sign(), expected.sign())
        assert bool(((found - expected).abs() <= largest_error(expected, precision)).all())
        if precision == "fp32":
            assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("format", ["bitmask", "dense"])
def test_negative_zeros_are_zeros(tmp_path, net, precision, format):
    positive = net.write(tmp_path / "a", precision=precision, format=format)
    for name in net.contents["prunable"]:
        net.state[name] = torch.where(net.state[name] == 0, -0.0, net.state[name])
    negative = net.write(tmp_path / "b", precision=precision, format=format)
    assert (negative.nonzero, negative.bytes) == (positive.nonzero, positive.bytes)
    assert inspect_artifact(tmp_path / "b")["problems"] == []


@pytest.mark.parametrize(("precision", "value_bytes"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
@pytest.mark.parametrize("density", [0.05, 0.15, 0.5])
def test_files_are_as_small_as_the_formula_says(tmp_path, precision, value_bytes, density):
    """N/8 + nnz * bytes for a packed matrix, its row scales for int8, plus the dense rest."""
    rows, columns = 4096, 1024
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, columns, generator=generator)
    weight[torch.rand(rows, columns, generator=generator) >= density] = 0
    state = {"lstm.weight_hh_l0": weight, "lstm.bias_hh_l0": torch.zeros(rows)}
    write_artifact(
        tmp_path / "a", state=state, model={}, tokenizer=b"", tokens_txt="", features={},
        dense_parameters=weight.numel() + rows, prunable=["lstm.weight_hh_l0"], source={},
        precision=precision,
    )  # fmt: skip
    nonzero = int(weight.count_nonzero())
    formula = weight.numel() / 8 + nonzero * value_bytes
    formula += 4 * rows if precision == "int8" else 0  # a float32 scale per row
    formula += rows * (2 if precision == "fp16" else 4)  # the bias, float32 in an int8 file
    packed = TensorFile(tmp_path / "a" / "model.safetensors").size_bytes
    assert abs(packed / formula - 1) < 0.005


@pytest.mark.parametrize("block", [(8, 1), (16, 1), (4, 4)])
def test_blocks_of_a_matrix_that_is_written_in_parts(tmp_path, block):
    """More weights than are in memory at once, and rows and columns that no block tiles."""
    rows, columns = 1203, 701
    assert rows * columns > CHUNK_WEIGHTS
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(rows, columns, generator=generator)
    grid = torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=generator) < 0.2
    mask = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
    state = {"lstm.weight_hh_l0": weight * mask, "lstm.bias_hh_l0": torch.zeros(rows)}
    info = write_artifact(
        tmp_path / "a", state=state, model={}, tokenizer=b"", tokens_txt="", features={},
        dense_parameters=weight.numel() + rows, prunable=["lstm.weight_hh_l0"], source={},
        precision="fp32", block=block,
    )  # fmt: skip
    assert info.nonzero == int(mask.sum()) + rows
    assert inspect_artifact(tmp_path / "a")["problems"] == []
    restored = read_artifact(tmp_path / "a").state["lstm.weight_hh_l0"]
    assert torch.equal(restored, state["lstm.weight_hh_l0"])
