"""Work of a training that its processes share, beside its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from omnisparse.errors import OmnisparseError


def shared_by(accelerator: Accelerator) -> Callable[[Sequence[Any], Callable[[Any], Any]], Any]:
    """Does tasks on all processes of a training, each its part; each is given all results.

    Args:
        accelerator: The processes.

    Returns:
        A function of tasks, the same on every process, and of what does one; it gives the results
        in order. An error on one process is raised on all.
    """

    def spread(tasks: Sequence[Any], run: Callable[[Any], Any]) -> list[Any]:
        rank, count = accelerator.process_index, accelerator.num_processes
        own: list[Any] = []
        failed: Exception | None = None
        try:
            own += map(run, tasks[rank::count])
        except Exception as error:  # the others wait: all must hear of it
            if count == 1:
                raise
            failed = error
        if count == 1:
            return own
        everything = gather_object([(own, failed)])
        for _, found in everything:
            if isinstance(found, OmnisparseError):
                found.on_every_process = True  # so that it is told once
            if found is not None:
                raise found
        return [everything[number % count][0][number // count] for number in range(len(tasks))]

    return spread
