"""Freed memory is kept between quick steps and given back between long ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from omnisparse.training import heap
from omnisparse.training.heap import BetweenSteps


def test_only_behind_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    now = [100.0]
    monkeypatch.setattr(heap.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heap, "give_back_freed_memory", lambda: given.append(now[0]))
    steps = BetweenSteps()
    for seconds in (0.5, 9.0, 10.0, 0.5, 60.0, 1.0):
        steps.begin_step()
        now[0] += seconds
    assert given == [100.0 + 19.5, 100.0 + 80.0]


PROGRAM = """
import psutil, torch
from omnisparse.training.heap import give_back_freed_memory, keep_freed_memory
if not keep_freed_memory():
    raise SystemExit(77)
blocks = [torch.ones(1 << 18) for _ in range(200)]
blocks.append(torch.ones(1 << 10))  # above the others: the heap cannot shrink
resident = lambda: psutil.Process().memory_info().rss
del blocks[:200]
kept = resident()
give_back_freed_memory()
print(kept - resident())
"""


def test_memory_below_what_is_in_use_goes_back() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    if ended.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert int(ended.stdout) > 150 << 20, ended.stderr
