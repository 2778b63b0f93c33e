"""Whether each matrix of a model has the fastest packing here: the cost model against the clock.

All packings of all matrices take turns, a product with one vector each, so that a model that is
larger than a cache comes from memory, as it does between two frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from omnisparse.artifact.packed import PackedModel
from omnisparse.deploy.cost import Kind
from omnisparse.deploy.packing import pack
from omnisparse.deploy.sparse_kernels import PackedMatrix

KINDS: tuple[Kind, ...] = ("dense", "block", "csr", "panel", "slice")


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One thinned matrix."""

    name: str
    """Its fully qualified name."""

    rows: int
    columns: int

    density: float
    """Share of its weights that is kept, in (0, 1]."""

    chosen: str
    """The packing that recognition takes, by the cost model."""

    fastest: str
    """The packing that was fastest here."""

    microseconds: dict[str, float]
    """Median time of a product with one vector, by packing."""

    @property
    def loss(self) -> float:
        """Time of the chosen packing over that of the fastest, at least 1."""
        return self.microseconds[self.chosen] / self.microseconds[self.fastest]


def measure_layers(
    files: PackedModel,
    *,
    rounds: int = 50,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[LayerRow]:
    """Time every packing of every thinned matrix, one thread.

    Args:
        files: The model.
        rounds: Products of each.
        progress: Told how many of how many rounds are done.
    """
    thinned = [tensor for name in files.names if (tensor := files.read(name)).packing != "dense"]
    packed: dict[str, dict[Kind, PackedMatrix]] = {}
    for tensor in thinned:
        found = packed[tensor.fqn] = {}
        for kind in KINDS:
            try:
                found[kind] = pack(tensor, kind)
            except ValueError:  # not for these blocks, this width or this processor
                continue
    rng = np.random.default_rng(0)
    vectors = {one.fqn: rng.standard_normal((1, one.shape[1]), np.float32) for one in thinned}
    times: dict[tuple[str, Kind], list[int]] = {}
    for done in range(1, rounds + 1):
        for kind in KINDS:
            for name, found in packed.items():
                if kind in found:
                    start = time.thread_time_ns()
                    found[kind].products(vectors[name])
                    times.setdefault((name, kind), []).append(time.thread_time_ns() - start)
        progress(done, rounds)
    rows = []
    for tensor in thinned:
        found = packed[tensor.fqn]
        taken = {kind: median(times[tensor.fqn, kind]) / 1000 for kind in found}
        rows.append(
            LayerRow(
                name=tensor.fqn,
                rows=tensor.shape[0],
                columns=tensor.shape[1],
                density=tensor.values.size / (tensor.shape[0] * tensor.shape[1]),
                chosen=pack(tensor).kind,
                fastest=min(taken, key=lambda kind: taken[kind]),
                microseconds={str(kind): value for kind, value in taken.items()},
            )
        )
    return rows
