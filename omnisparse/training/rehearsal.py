"""Steps that are taken to learn what a training needs, and are forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from omnisparse.training.memory import PeakMemory
from omnisparse.training.trainer import Trainer

TIMED_STEPS = 10
_STEPS_AT_THE_PEAK = 2  # gradients and moments of the first are there in the second


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """What the steps took.

    Attributes:
        peak_bytes: Of the process that took most: weights, gradients, optimizer and the largest
            batch of an epoch.
        largest_audio_seconds: Audio of that batch, or of its share on this process.
        audio_seconds_per_second: Of all processes together, padding excluded, each utterance
            counted once.
        seconds_per_step: Mean on the clock.
    """

    peak_bytes: int
    largest_audio_seconds: float
    audio_seconds_per_second: float
    seconds_per_step: float


def rehearse(
    trainer: Trainer,
    memory: PeakMemory,
    *,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Rehearsal:
    """Take the largest batches of an epoch, then ten others, as the run's last steps.

    Then all nets of a supernet train, and all parts of a net. The ten are those that follow in an
    epoch whose order is random. The trainer is of no use for a training afterwards.

    Args:
        trainer: Ready to train, at its first step.
        memory: Made before the net was.
        on_step: Called with (steps taken, steps in all).

    Raises:
        OmnisparseError: If memory does not suffice; names the settings that help.
    """
    accelerator, batches = trainer.accelerator, trainer.batches
    batches.load_state_dict({"epoch": batches.first_shuffled_epoch, "batches": 0})
    largest = [batch for batch in batches.largest() for _ in range(_STEPS_AT_THE_PEAK)]
    total = len(largest) + TIMED_STEPS
    trainer.step = max(0, trainer.max_steps - total)
    with trainer.running():
        for done, batch in enumerate(largest, start=1):
            trainer.train_step(batch.to(accelerator.device))
            on_step(done, total)
        peak = memory.num_bytes
        stream = iter(batches)
        _wait(accelerator.device)
        started, audio = time.perf_counter(), 0.0
        for done in range(TIMED_STEPS):
            batch = next(stream)
            audio += 0.0 if batch.is_copy else batch.audio_seconds
            trainer.train_step(batch.to(accelerator.device))
            on_step(len(largest) + done + 1, total)
        _wait(accelerator.device)
        seconds = time.perf_counter() - started
    own = torch.tensor([peak, audio, seconds], dtype=torch.float64)
    if accelerator.device.type == "mps":  # has no float64
        own = own.float()
    every = accelerator.gather(own.to(accelerator.device)).reshape(-1, 3).cpu()
    slowest = float(every[:, 2].max())
    return Rehearsal(
        peak_bytes=int(every[:, 0].max()),
        largest_audio_seconds=max(batch.audio_seconds for batch in largest),
        audio_seconds_per_second=float(every[:, 1].sum()) / slowest,
        seconds_per_step=slowest / TIMED_STEPS,
    )


def _wait(device: torch.device) -> None:
    """Until all that the device was asked for is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
