"""The estimate of `tools/simulate_scale.py` against sums by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
FAST_READERS = {"loader_hours_per_second": 1.0}
NET = {"parameters": 100_000_000, "flops_per_second": 20e9}


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("simulate_scale", TOOLS / "simulate_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_scale"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_one_device_exchanges_nothing(tool: Any) -> None:
    given = tool.Assumptions(
        peak_flops=100e12, utilisation=0.2, batch_seconds_per_device=400.0, **FAST_READERS
    )
    row = tool.estimate(NET, 1, given)
    assert row["exchange_seconds"] == 0
    assert row["compute_seconds"] == pytest.approx(400 * 20e9 / 20e12)  # 0.4 s
    assert row["steps"] == pytest.approx(960 * 3600 / 400)
    assert row["epoch_seconds"] == pytest.approx(8640 * 0.4)
    assert row["limit"] == "compute"


def test_eight_devices_send_their_gradients_once_around(tool: Any) -> None:
    given = tool.Assumptions(inside_bandwidth=100e9, latency=0.0, **FAST_READERS)
    row = tool.estimate(NET, 8, given)
    assert row["exchanged_bytes_per_device"] == 4 * 100e6 * 2 * 7 / 8  # 0.7 GB
    assert row["exchange_seconds"] == pytest.approx(0.007)
    assert row["step_seconds"] == pytest.approx(row["compute_seconds"] + 0.007)


def test_many_devices_cross_machines_and_share_the_largest_batch(tool: Any) -> None:
    given = tool.Assumptions(
        between_bandwidth=10e9, batch_seconds_per_device=400.0, largest_batch_seconds=6400.0,
        latency=0.0, **FAST_READERS,
    )  # fmt: skip
    row = tool.estimate(NET, 64, given)
    assert row["batch_seconds"] == 6400
    assert row["compute_seconds"] == pytest.approx(100 * 20e9 / (given.peak_flops * 0.12))
    assert row["exchange_seconds"] == pytest.approx(4 * 100e6 * 2 * 63 / 64 / 10e9)
    assert row["limit"] == "exchange"
    assert "faster network" in tool.advise([row], given)
    assert tool.last_that_pays(NET, given) in (16, 32)


def test_slow_readers_are_the_limit_where_they_are(tool: Any) -> None:
    given = tool.Assumptions(loader_hours_per_second=1e-4, cores_per_device=2)
    row = tool.estimate(NET, 8, given)
    assert row["loading_seconds"] == pytest.approx(400 / 3600 / 2e-4)
    assert row["step_seconds"] == row["loading_seconds"]
    assert row["limit"] == "loading"
    assert "data.frames: store" in tool.advise([row], given)
