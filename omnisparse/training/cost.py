"""What the steps of a training cost: passes, floating-point operations, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from omnisparse.models.operations import counted_operations

SUMMED = ("utterance_passes", "flops", "audio_seconds", "device_seconds", "cpu_seconds")
"""Costs that each process counts for itself; records hold the sum over processes."""


_YOUNGER = ("flops", "audio_seconds")


class TrainingCost:
    """Costs of one process since the beginning of its run, resumed or not.

    ``utterance_passes`` (an utterance forward and backward through any net), ``flops``
    (:mod:`omnisparse.models.operations`, the forward passes of a fixed teacher included),
    ``audio_seconds`` (of each batch once, padding excluded), ``device_seconds`` and ``cpu_seconds``
    of the steps, ``skipped_steps``. A run that was begun when operations were not counted has no
    ``flops``, and in the same way no ``audio_seconds``.
    """

    def __init__(self) -> None:
        self._values = dict.fromkeys(SUMMED, 0.0)
        self.skipped_steps = 0

    @contextmanager
    def of_step(self) -> Iterator[None]:
        """Add the seconds of a block."""
        started, cpu_started = time.perf_counter(), time.process_time()
        yield
        self._values["device_seconds"] += time.perf_counter() - started
        self._values["cpu_seconds"] += time.process_time() - cpu_started

    @contextmanager
    def of_passes(self, *, is_copy: bool) -> Iterator[None]:
        """Add the operations of a block.

        Args:
            is_copy: Whether the block computes what counts on another process.
        """
        with counted_operations() as count:
            yield
        if "flops" in self._values and not is_copy:
            self._values["flops"] += count.total

    def add_passes(self, utterances: int, audio_seconds: float) -> None:
        """Add passes of utterances, and the audio of their batch, 0 where it counts elsewhere."""
        self._values["utterance_passes"] += utterances
        if "audio_seconds" in self._values:
            self._values["audio_seconds"] += audio_seconds

    def summed(self, add: Callable[[list[float]], list[float]]) -> dict[str, float]:
        """The cost of all processes.

        Args:
            add: Adds up a list over the processes.
        """
        names = list(self._values)
        totals = add([self._values[name] for name in names])
        return {
            **dict(zip(names, totals, strict=True)),
            # Gradients are reduced: a step is skipped by all processes together.
            "skipped_steps": float(self.skipped_steps),
        }

    def own(self) -> dict[str, float]:
        """The cost of this process."""
        return self.summed(list)

    def restore(self, document: Mapping[str, float], num_processes: int) -> None:
        """Go on from the cost of all processes in a checkpoint."""
        known = [name for name in SUMMED if name in document or name not in _YOUNGER]
        self._values = {name: document[name] / num_processes for name in known}
        self.skipped_steps = int(document["skipped_steps"])
