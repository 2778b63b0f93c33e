"""How often the cost model of a search by latency counts a matrix."""

from __future__ import annotations

from typing import Any

import pytest

from omnisparse.pipeline.extract_in_time import CHUNK_SECONDS
from omnisparse.pipeline.search_latency import calls_of

OURS: dict[str, Any] = {"kind": "transducer", "time_reduction": 4}
NEMOS: dict[str, Any] = {"kind": "transducer", "family": "nemo", "time_reduction": 6}


@pytest.mark.parametrize(
    ("model", "fqn", "frames_each"),
    [
        (OURS, "encoder.layers.0.weight_ih_l0", 1),
        (OURS, "encoder.layers.1.weight_hh_l0", 2),
        (OURS, "encoder.layers.2.weight_ih_l0", 4),
        (OURS, "encoder.layers.5.weight_ih_l0", 4),
        (OURS, "joiner.output.weight", 4),
        (NEMOS, "encoder.input_projection.weight", 6),
        (NEMOS, "encoder.layers.0.weight_ih_l0", 6),
        (NEMOS, "encoder.layers.1.weight_hr_l0", 6),
        (NEMOS, "joiner.encoder_projection.weight", 6),
    ],
)
def test_frames_that_a_matrix_is_multiplied_with(
    model: dict[str, Any], fqn: str, frames_each: int
) -> None:
    assert calls_of(fqn, model, frames=12) == 12 / frames_each


@pytest.mark.parametrize("model", [OURS, NEMOS])
@pytest.mark.parametrize(
    "part", ["predictor.layers.0.weight_ih_l0", "joiner.predictor_projection.weight"]
)
def test_the_predictor_runs_once_a_token(model: dict[str, Any], part: str) -> None:
    assert calls_of(part, model, frames=4) == 3 * CHUNK_SECONDS
