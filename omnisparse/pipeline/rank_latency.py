"""Measured time of the products that ranks make, on this machine, one vector at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from omnisparse.search.journal import Journal
from omnisparse.search.ranks import grid
from omnisparse.sparsity.decomposition import RankBudget, break_even_rank
from omnisparse.sparsity.timed_ranks import TimedBudget

_SECONDS = 0.004
"""Time that one measurement takes, at least."""

_REPEATS = 3
"""Measurements of each product; the shortest counts, because all else is disturbance."""


def timed_budget(budget: RankBudget, journal: Journal) -> TimedBudget:
    """The times of all matrices at the ranks of the grid.

    Args:
        budget: Shapes of the matrices.
        journal: Keeps what was measured: a search that goes on must have the same times.
    """
    times: dict[str, tuple[tuple[int, int], ...]] = {}
    whole = {}
    for name, (rows, columns) in budget.shapes.items():
        limit = break_even_rank(rows, columns)
        ranks = sorted({max(1, round(share * limit)) for share in grid()}) if limit else []
        question = f"times {name} {rows} {columns}"
        found: Mapping[str, int] = journal.ask(question, partial(_times, rows, columns, ranks))
        whole[name] = found["whole"]
        times[name] = tuple((rank, found[str(rank)]) for rank in ranks)
    return TimedBudget(budget.shapes, 0, times, whole, limits=budget.limits)


def _times(rows: int, columns: int, ranks: list[int]) -> dict[str, int]:
    """Nanoseconds of the whole matrix and of two factors of every rank, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        vector, matrix = torch.randn(columns), torch.randn(rows, columns)
        found = {"whole": _shortest(lambda: matrix @ vector)}
        for rank in ranks:
            left, right = torch.randn(rows, rank), torch.randn(rank, columns)
            found[str(rank)] = _shortest(partial(_product, left, right, vector))
        return found
    finally:
        torch.set_num_threads(threads)


def _product(left: Tensor, right: Tensor, vector: Tensor) -> Tensor:
    return left @ (right @ vector)


def _shortest(work: Callable[[], object]) -> int:
    work()
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        count = 0
        while time.perf_counter() - started < _SECONDS:
            for _ in range(8):
                work()
            count += 8
        best = min(best, (time.perf_counter() - started) / count)
    return max(1, round(best * 1e9))
