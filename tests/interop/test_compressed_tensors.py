"""compressed-tensors 0.14.0.1 reads our artifacts, and would have written the same fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnisparse.artifact import write_artifact

pytestmark = pytest.mark.interop

LINEAR = ["joiner.weight", "output.weight"]
LSTM = ["encoder.weight_ih_l0"]


def write(out: Path, precision: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {LINEAR[0]: (24, 37), LINEAR[1]: (16, 64), LSTM[0]: (32, 21), "joiner.bias": (24,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in (*LINEAR, *LSTM):
        state[name][state[name].abs() < 1] = 0
    state["output.weight"].zero_()  # a matrix with nothing left
    write_artifact(
        out,
        state=state,
        model={"kind": "las"},
        tokenizer=b"",
        tokens_txt="",
        features={},
        precision=precision,
        dense_parameters=sum(tensor.numel() for tensor in state.values()),
        prunable=[*LINEAR, *LSTM],
        source={},
    )
    return state


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_their_reader_restores_our_files(tmp_path, precision, dtype):
    sparse = pytest.importorskip("compressed_tensors.compressors.sparse_compressors.sparse_bitmask")
    config = pytest.importorskip("compressed_tensors.config")
    state = write(tmp_path / "a", precision)
    ours = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert ours["quant_method"] == "compressed-tensors"
    sparsity_config = config.BitmaskConfig(**ours["sparsity_config"])
    compressor = sparse.BitmaskCompressor(config=sparsity_config)
    restored = dict(compressor.decompress(str(tmp_path / "a")))
    for name in LINEAR:
        assert torch.equal(restored[name], state[name].to(dtype)), name
    # Their reader appends `.weight` to everything it unpacks.
    assert torch.equal(restored[f"{LSTM[0]}.weight"], state[LSTM[0]].to(dtype))
    assert torch.equal(restored["joiner.bias"], state["joiner.bias"].to(dtype))


def test_their_writer_makes_the_same_fields(tmp_path):
    sparse = pytest.importorskip("compressed_tensors.compressors.sparse_compressors.sparse_bitmask")
    state = write(tmp_path / "a", "fp32")
    fields = load_file(tmp_path / "a" / "model.safetensors")
    for name in LINEAR:
        prefix = name.removesuffix(".weight")
        theirs = sparse.BitmaskTensor.from_dense(state[name]).dict(prefix)
        for key, tensor in theirs.items():
            assert fields[key].dtype == tensor.dtype, key
            assert torch.equal(fields[key], tensor), key
