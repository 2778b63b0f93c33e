"""`--size 16M` of the 110 M-parameter LAS of the recipe, counted by another reader of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_run
from safetensors import safe_open

from omnisparse.config import load_config
from omnisparse.models import LasConfig

RECIPE = Path(__file__).parents[3] / "recipes" / "configs" / "las_110m_librispeech.yaml"


def count_nonzero(path: Path, buffers: set[str]) -> tuple[int, int, float]:
    """Weights that a file of masks and values stands for, with safetensors and numpy alone.

    Returns:
        Non-zeros of packed matrices plus all other parameters; dense parameters; and the bytes
        that N/8 + nnz * 4 per packed matrix, and 4 for every other parameter, come to.
    """
    nonzero = dense = 0
    formula = 0.0
    with safe_open(path, framework="numpy") as file:
        keys = set(file.keys())
        packed = {key.removesuffix(".bitmask") for key in keys if key.endswith(".bitmask")}
        for name in packed:
            kept = int(np.unpackbits(file.get_tensor(f"{name}.bitmask")).sum())
            values = file.get_tensor(f"{name}.compressed")
            assert values.dtype == np.float32
            assert kept == values.size == np.count_nonzero(values)
            weights = int(np.prod(file.get_tensor(f"{name}.shape")))
            nonzero, dense = nonzero + kept, dense + weights
            formula += weights / 8 + 4 * kept
            keys -= {f"{name}.{part}" for part in ("bitmask", "compressed", "shape", "row_offsets")}
        for key in keys - buffers:
            size = int(np.prod(file.get_slice(key).get_shape()))
            nonzero, dense, formula = nonzero + size, dense + size, formula + 4 * size
    assert packed
    return nonzero, dense, formula


@pytest.mark.slow
def test_16m_of_the_110m_las_has_exactly_16_million_nonzeros(tmp_path: Path, run_json: Any) -> None:
    config = load_config(RECIPE, [])
    model = config.model
    assert isinstance(model, LasConfig)
    assert (model.encoder_layers, model.encoder_dim) == (5, 1400)
    assert (model.decoder_layers, model.decoder_dim) == (2, 1024)
    assert config.data.vocab_size == 4096
    features = config.data.features
    run = make_run(
        tmp_path / "run", model, input_dim=80 * features.stack, vocab_size=config.data.vocab_size
    )
    out = tmp_path / "16M"
    made = run_json("extract", "--run", run, "--size", "16M", "--out", out)
    nonzero, dense, formula = count_nonzero(out / "model.safetensors", set())
    assert nonzero == made["nonzero"] == 16_000_000
    assert dense == made["parameters"]
    assert 95e6 < dense < 115e6
    size = (out / "model.safetensors").stat().st_size
    assert abs(size / formula - 1) < 0.005
    found = run_json("inspect", out)
    assert found["layers"] == made["layers"]
    assert found["problems"] == []
    recurrent = [layer for layer in found["layers"] if ".weight_" in layer["name"]]
    kept, weights = (sum(layer[key] for layer in recurrent) for key in ("nonzero", "parameters"))
    assert kept / weights > 0.02  # what is never pruned must leave something to the LSTMs
