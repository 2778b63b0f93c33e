"""Sizes that are times: ``omnisparse search --sizes 0.5ms,1ms`` minimises errors at a latency.

The time of a subnet is modelled by the kernels' cost model, fitted to two models that are measured
on this machine; what the search ends with is measured, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.deploy.cost import fastest, product_ns
from omnisparse.deploy.engine import needs_torch
from omnisparse.deploy.native import NUMBA, kernels
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.errors import UsageError
from omnisparse.pipeline.extract import extract
from omnisparse.pipeline.extract_in_time import CHUNK_SECONDS, latency_of
from omnisparse.search.journal import Journal, key_of
from omnisparse.sparsity.sizes import parse_latency
from omnisparse.sparsity.space import SubnetSpec
from omnisparse.sparsity.timed_space import TimedSpace

if TYPE_CHECKING:
    from omnisparse.pipeline.search_task import SearchTask

_DENSITIES = (0.05, 0.6)
"""Of the two models that are measured first."""

_MARGIN = 0.97
"""Share of a limit that the model may fill: what is measured comes close to it, not above."""

_TOKENS_PER_SECOND = 3.0
"""How often what runs once a token runs."""


class Latency:
    """Times of the subnets of a run on this machine, one thread, for 40 ms of audio.

    Args:
        task: The search.
        journal: Keeps what was measured: a search that goes on must have the same times.

    Raises:
        UsageError: If no kernels run the net.
    """

    def __init__(self, task: SearchTask, journal: Journal) -> None:
        model = task.description.model
        why = needs_torch(model)
        if why is not None:
            raise UsageError(f"sizes that are times need the kernels of LSTMs, not {why}")
        self._task, self._journal = task, journal
        frames = CHUNK_SECONDS * 100 / task.loaded.extractor.stack
        self._calls = {fqn: calls_of(fqn, model, frames) for fqn in task.space.numel}
        space = task.space
        probes = [space.at(density) for density in _DENSITIES]
        modelled = [self._products(spec.counts(space.numel)) for spec in probes]
        measured = [1e9 * self.measured(spec) for spec in probes]
        slope = (measured[1] - measured[0]) / max(1.0, modelled[1] - modelled[0])
        self._slope = max(slope, 0.0)
        self._rest = max(0.0, measured[0] - self._slope * modelled[0])

    def take_sizes(self, sizes: Sequence[str]) -> None:
        """Makes times the sizes of the task.

        Args:
            sizes: Such as ``0.5ms``.

        Raises:
            UsageError: If a time is impossible; names the fastest.
        """
        space = TimedSpace(self._task.space.shapes, self.modelled, **self._task.options)
        least = space.fastest() / _MARGIN
        limits = {size.strip(): 1e9 * parse_latency(size) for size in sizes}
        for size, limit in limits.items():
            if limit < least:
                raise UsageError(
                    f"size {size}: no model takes so short a time for 40 ms of audio here; the "
                    f"fastest takes {least / 1e6:.3f} ms"
                )
        totals = {size: int(_MARGIN * limit) for size, limit in limits.items()}
        if len({space.spec(total) for total in totals.values()}) < len(sizes):
            raise UsageError(f"sizes {','.join(sizes)}: two of them give the same model")
        self._task.space, self._task.totals = space, totals

    def modelled(self, counts: Mapping[str, int]) -> int:
        """Nanoseconds of a subnet that keeps so many weights of each matrix."""
        return round(self._rest + self._slope * self._products(counts))

    def measured(self, spec: SubnetSpec) -> float:
        """Seconds of a subnet, measured once."""

        def measure() -> float:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "spec.json"
                path.write_text(spec.to_json(), encoding="utf-8")
                extract(self._task.run, spec=path, out=Path(folder) / "model")
                recognizer = Recognizer.from_path(Path(folder) / "model", runtime="sparse")
                return latency_of(recognizer)

        return float(self._journal.ask(f"{key_of(spec)} latency", measure))

    def _products(self, counts: Mapping[str, int]) -> float:
        """Nanoseconds of the products, by the cost model."""
        library, level = kernels()
        on = None if library is None and level != NUMBA else level
        total = 0.0
        for fqn, count in counts.items():
            shape, block = self._task.space.shapes[fqn], self._task.supernet.block_of(fqn)
            height = block[0] if block in ((8, 1), (16, 1)) else 0
            kept = -(-count // height) if height else count
            kind = fastest(shape, kept, height, 4, on)
            total += self._calls[fqn] * product_ns(kind, shape, kept, height, 4, on)
        return total


def calls_of(fqn: str, model: Mapping[str, Any], frames: float) -> float:
    """How often a matrix is multiplied in 40 ms of audio.

    Args:
        fqn: Its name.
        model: Configuration of the net.
        frames: Feature frames of 40 ms.
    """
    reduction = int(model["time_reduction"])
    if fqn.startswith(("joiner.encoder", "joiner.output")):
        return frames / reduction
    if not fqn.startswith("encoder."):
        return _TOKENS_PER_SECOND * CHUNK_SECONDS
    if model.get("family") == "nemo":  # frames are joined before the first layer
        return frames / reduction
    return float(frames / min(reduction, 1 << int(fqn.split(".")[2])))


def keeping(
    limit: str, times: Mapping[SubnetSpec, float], tell: Callable[[str], None]
) -> list[SubnetSpec]:
    """The subnets that keep a limit as measured; where none does, the fastest, which is told."""
    seconds = parse_latency(limit)
    kept = [spec for spec, taken in times.items() if taken <= seconds]
    if not kept:
        quickest = min(times, key=lambda spec: times[spec])
        tell(f"size {limit}: the fastest of its models takes {1000 * times[quickest]:.3f} ms")
        kept = [quickest]
    return kept
