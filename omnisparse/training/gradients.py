"""The gradient of one optimizer step: all losses of a batch, normalised over all processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omnisparse.data.batching import Batch
from omnisparse.methods.base import Loss, Method
from omnisparse.training.fully_sharded import unsynchronised
from omnisparse.training.heap import BetweenSteps
from omnisparse.training.micro_batches import micro_batches
from omnisparse.training.window import Pending


class Gradients:
    """Runs the backward passes of a step, all but the last without synchronisation.

    Args:
        method: Source of the losses.
        module: What it calls: the net, wrapped for several processes.
        accelerator: Processes, precision and device.
        parts: Parts that a batch is computed in, at least 1.
        micro_batch_seconds: Most audio computed at once, padding included, in seconds; None for no
            limit.
    """

    def __init__(
        self,
        method: Method,
        module: nn.Module,
        accelerator: Accelerator,
        *,
        parts: int,
        micro_batch_seconds: float | None,
    ) -> None:
        self.method, self.module, self.accelerator = method, module, accelerator
        self.parts, self.micro_batch_seconds = parts, micro_batch_seconds
        self._heap = BetweenSteps() if accelerator.device.type == "cpu" else None

    def accumulate(self, batch: Batch, step: int) -> tuple[list[Pending], int]:
        """Gradients of all losses of a batch, part by part; the losses and their passes."""
        if self._heap is not None:
            self._heap.begin_step()
        parts = micro_batches(batch, self.parts, self.micro_batch_seconds)
        count = self.method.num_losses(step)
        units = self._units_in_advance(batch, step) if self._accumulates else None
        values: dict[int, Pending] = {}
        passes = 0
        for number, part in enumerate(parts, start=1):
            losses = self.method.losses(self.module, part, step)
            for index in range(count):
                with self._synchronised(last=number == len(parts) and index == count - 1):
                    loss = next(losses)
                    if batch.is_copy:  # its utterances count where they are at home
                        loss = loss._replace(
                            value_sum=loss.value_sum * 0, num_units=loss.num_units * 0, utterances=0
                        )
                    total = self.sum(loss.num_units.float()) if units is None else units[index]
                    value = self._backward(loss, total)
                    before = values.get(index)
                    values[index] = Pending(
                        f"loss/{loss.name}",
                        value if before is None else before.value + value,
                        total,
                    )
                    passes += loss.utterances
                    del loss
            next(losses, None)  # lets the method tidy up behind its last loss
        # Added up at the end: processes may have different numbers of parts.
        return [one._replace(value=self.sum(one.value)) for one in values.values()], passes

    @property
    def _accumulates(self) -> bool:
        return self.parts > 1 or self.micro_batch_seconds is not None

    def _units_in_advance(self, batch: Batch, step: int) -> list[Tensor]:
        """What each loss of a whole batch is divided by, over all processes."""
        counts = [0.0 if batch.is_copy else n for n in self.method.units(batch, step)]
        return list(self.sum(torch.tensor(counts, device=self.accelerator.device)))

    def _synchronised(self, *, last: bool) -> AbstractContextManager[Any]:
        # Forward and backward must both be inside no_sync: DDP decides in the forward pass.
        return nullcontext() if last else unsynchronised(self.accelerator, self.module)

    def _backward(self, loss: Loss, num_units: Tensor) -> Tensor:
        """Run a loss's backward, divided by the units of all processes; returns its sum here."""
        value_sum = loss.value_sum.float()
        # DDP averages gradients over processes; the factor makes that the sum over all units.
        factor = loss.weight * self.accelerator.num_processes
        self.accelerator.backward(value_sum * factor / num_units.clamp(min=1.0))
        return value_sum.detach()

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        summed: Tensor = self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")
        return summed

    def sum_numbers(self, own: list[float]) -> list[float]:
        """The sums of numbers over all processes."""
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        total: list[float] = self.sum(torch.tensor(own, dtype=dtype, device=device)).tolist()
        return total
