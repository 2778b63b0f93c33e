"""Denormals are zero while a training lasts, and in no thread of OpenMP afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from omnisparse.training.denormals import denormals_flushed, is_flushing

# A process of its own: whether a worker flushes is decided when OpenMP starts it, once a process.
WORKERS = """
import torch
from omnisparse.training import denormals

def kept():
    made = torch.full((4_000_000,), 1e-40) * 1.0
    return [float((part != 0).float().mean()) for part in made.chunk(4)]

torch.set_num_threads(2)
assert denormals._openmp() is not None
with denormals.denormals_flushed():
    assert kept() == [0.0] * 4, kept()  # here OpenMP starts its second thread
assert kept() == [1.0] * 4, kept()
with denormals.denormals_flushed():
    torch.set_num_threads(3)
    assert kept() == [0.0] * 4, kept()
assert kept() == [1.0] * 4, kept()
"""


def test_workers_that_start_meanwhile_do_not_go_on_flushing() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("libgomp is what torch brings along on Linux")
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("own", [True, False])
def test_the_caller_has_its_own_setting_again(own: bool) -> None:
    before = is_flushing()
    torch.set_flush_denormal(own)
    try:
        with denormals_flushed():
            assert is_flushing()
            assert float(torch.tensor(1e-40) * 1.0) == 0.0
        assert is_flushing() is own
        assert (float(torch.tensor(1e-40) * 1.0) == 0.0) is own
    finally:
        torch.set_flush_denormal(before)
