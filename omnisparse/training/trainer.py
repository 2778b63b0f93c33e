"""The only training loop of the package.

A method yields losses. The loop normalises them over all processes, runs one backward pass for each
(all but the last without gradient synchronisation), clips, steps, logs and saves checkpoints.

Everything random is a pure function of (seed, step, process) or of (seed, epoch, utterance). So on
a CPU a resumed run repeats the uninterrupted run bit by bit, without saving any generator state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omnisparse.data.batching import Batch, TrainingBatches
from omnisparse.errors import (
    NonNegativeFloat,
    NonNegativeInt,
    OmnisparseError,
    PositiveFloat,
    PositiveInt,
    check_ranges,
)
from omnisparse.methods.base import Loss, Method
from omnisparse.models.base import SpeechModel
from omnisparse.training.checkpoint import Checkpoint, checkpoint_folder, save_checkpoint
from omnisparse.training.denormals import denormals_flushed
from omnisparse.training.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from omnisparse.training.stop_signals import InterruptedTrainingError, StopSignals
from omnisparse.training.tracking import Metrics, Tracker

_SUMMED_COSTS = ("utterance_passes", "device_seconds", "cpu_seconds")
"""The cost of training; each process counts its own, records hold the sum over processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Optimizer, schedule, length and logging of a training."""

    epochs: NonNegativeFloat = 18.0
    """Passes of the dense net over the training set; ignored if ``max_steps`` is given."""
    max_steps: NonNegativeInt | None = None
    """Optimizer steps; with 0 the run holds the untrained net."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Decay of the learning rate after the warm-up, to 1 % of its peak at the last step."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's moment decays."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled decay of matrices; vectors (biases, norms) have none."""
    clip_norm: PositiveFloat = 5.0
    """Gradients are clipped to this global norm."""
    max_skipped_steps: PositiveInt = 20
    """The run fails after this many steps in a row with a non-finite gradient."""
    log_every: PositiveInt = 20
    """Steps between two lines of ``metrics.jsonl``."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints; the last step always writes one."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints to keep."""
    evaluate_every: NonNegativeInt = 0
    """Steps between two evaluations on the dev split; 0 for none."""
    evaluate_utterances: PositiveInt = 100
    """Utterances of the dev split that such an evaluation decodes."""
    threads: PositiveInt | None = None
    """CPU threads per process; None keeps the setting of the environment."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_ranges(self)


def learning_rate(step: int, config: TrainingConfig, max_steps: int) -> float:
    """Learning rate of ``step`` (from 0): linear warm-up, then the configured decay."""
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    if config.schedule == "constant":
        return peak
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return peak * (0.01 + 0.99 * max(0.0, shape))


class Trainer:
    """Train ``model`` with ``method`` on ``batches``.

    Args:
        model: The network; the checkpoint uses its parameter names.
        method: Source of the losses.
        batches: Endless training batches of this process.
        config: Optimizer, schedule, length, records.
        max_steps: Optimizer steps of the whole run.
        seed: The run's seed.
        run: The run directory.
        accelerator: Processes, precision and device.
        tracker: Receiver of metrics (main process only).
        record: Stored in every checkpoint beside the loop's own state.
        evaluate: Called on the main process every ``evaluate_every`` steps with the step; its
            metrics are logged.
        on_progress: Called on the main process after every step with (step, max_steps, metrics).
        stage: Called on the main process with one line of information for the user.
    """

    def __init__(
        self,
        model: SpeechModel,
        method: Method,
        batches: TrainingBatches,
        config: TrainingConfig,
        *,
        max_steps: int,
        seed: int,
        run: Path,
        accelerator: Accelerator,
        tracker: Tracker | None,
        record: dict[str, Any] | None = None,
        evaluate: Callable[[int], Metrics] | None = None,
        on_progress: Callable[[int, int, Metrics], None] | None = None,
        stage: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config, self.max_steps, self.seed, self.run = config, max_steps, seed, run
        self.accelerator, self.tracker, self.record = accelerator, tracker, record or {}
        self.batches, self.method, self.model = batches, method, model
        self.evaluate, self.on_progress, self.stage = evaluate, on_progress, stage
        self.module = accelerator.prepare(method.prepare(model, max_steps=max_steps))
        self.parameters = dict(model.named_parameters())
        self.optimizer = make_optimizer(
            self.parameters,
            learning_rate=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.step = 0
        self.cost = dict.fromkeys(_SUMMED_COSTS, 0.0) | {"skipped_steps": 0.0}
        self._skipped_in_a_row = 0
        self._window: dict[str, tuple[float, int]] = {}
        self._stop = StopSignals()

    # -- the loop ---------------------------------------------------------------------------

    def fit(self) -> Metrics:
        """Train until ``max_steps`` and return the last metrics.

        Raises:
            InterruptedTrainingError: If a signal requested a stop; a checkpoint is written first.
            OmnisparseError: If the gradient stays non-finite.
        """
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        metrics: Metrics = dict(self.cost)
        self.module.train()
        with self._stop.caught(), denormals_flushed():
            stream = iter(self.batches) if self.step < self.max_steps else iter(())
            for batch in stream:
                self._remember(self._train_step(batch.to(self.accelerator.device)))
                done = self.step >= self.max_steps
                if self.step % self.config.log_every == 0 or done:
                    metrics = self._log()
                if self.accelerator.is_main_process and self.on_progress is not None:
                    self.on_progress(self.step, self.max_steps, metrics)
                self._evaluate_if_due(done)
                signal = self._stop_signal()
                if self.step % self.config.checkpoint_every == 0 or done or signal is not None:
                    path = self.save()
                if signal is not None:
                    raise InterruptedTrainingError(signal, self.step, self.max_steps, path)
                if done:
                    break
            else:
                self.save()  # max_steps = 0: the untrained net
        return metrics

    def _train_step(self, batch: Batch) -> Metrics:
        started, cpu_started = time.perf_counter(), time.process_time()
        step = self.step
        torch.manual_seed(_mix(self.seed, step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config, self.max_steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.set_step(step)
        metrics: Metrics = {}
        passes = 0
        losses = self.method.losses(self.module, batch, step)
        count = self.method.num_losses(step)
        for index in range(count):
            with self._synchronised(last=index == count - 1):
                loss = next(losses)
                if batch.is_copy:  # its utterances are counted by another process
                    loss = loss._replace(
                        value_sum=loss.value_sum * 0, num_units=loss.num_units * 0, utterances=0
                    )
                value = self._backward(loss)
                if value is not None:
                    metrics[f"loss/{loss.name}"] = value
                passes += loss.utterances
                del loss
        next(losses, None)  # lets the method finish its code after its last loss
        norm = self._clip()
        if math.isfinite(norm):
            self.optimizer.step()
            self._skipped_in_a_row = 0
        else:
            self._skip(batch)
        self.method.on_step_end(step)
        self.step += 1
        self.cost["utterance_passes"] += passes
        self.cost["device_seconds"] += time.perf_counter() - started
        self.cost["cpu_seconds"] += time.process_time() - cpu_started
        return {**metrics, "gradient_norm": norm}

    def _synchronised(self, *, last: bool) -> AbstractContextManager[Any]:
        # Forward and backward must both be inside no_sync: DDP decides in the forward pass.
        return nullcontext() if last else self.accelerator.no_sync(self.module)

    def _backward(self, loss: Loss) -> float | None:
        """Normalise ``loss`` over all processes, run its backward, and return its value.

        With a small batch a subnet may have no utterance; then it has no loss, and None is
        returned.
        """
        num_units = self._sum(loss.num_units.detach().float())
        processes = self.accelerator.num_processes
        value_sum = loss.value_sum.float()
        # DDP averages gradients over processes; the factor turns the average into a sum.
        self.accelerator.backward(value_sum * (loss.weight * processes) / num_units.clamp(min=1.0))
        if not num_units:
            return None
        return float(self._sum(value_sum.detach()) / num_units)

    def _sum(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        summed: Tensor = self.accelerator.reduce(value, reduction="sum")
        return summed

    def _clip(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        return float(norm)

    def _skip(self, batch: Batch) -> None:
        """Count a step with a non-finite gradient; all processes have the same reduced gradient."""
        self.cost["skipped_steps"] += 1
        self._skipped_in_a_row += 1
        if self.accelerator.is_main_process:
            self.stage(
                f"step {self.step} is skipped: its gradient is not finite (utterances "
                f"{', '.join(batch.ids[:4])}{', ...' if len(batch.ids) > 4 else ''})"
            )
        if self._skipped_in_a_row >= self.config.max_skipped_steps:
            raise OmnisparseError(
                f"the gradient was not finite for {self._skipped_in_a_row} steps in a row, last at "
                f"step {self.step} with utterances {', '.join(batch.ids[:4])}, ...; a lower "
                "training.learning_rate or training.clip_norm may help"
            )

    # -- records ----------------------------------------------------------------------------

    def _remember(self, metrics: Metrics) -> None:
        """Add a step to the next log line; values of a skipped step are not averaged."""
        for key, value in metrics.items():
            if math.isfinite(value):
                total, count = self._window.get(key, (0.0, 0))
                self._window[key] = (total + value, count + 1)

    def _log(self) -> Metrics:
        metrics = {key: total / count for key, (total, count) in self._window.items()}
        self._window = {}
        metrics |= self.method.metrics()
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        metrics["epoch"] = self.step / max(1, self.batches.steps_per_epoch)
        metrics |= self._summed_cost()
        if self.tracker is not None:
            self.tracker.log(self.step, metrics)
        return metrics

    def _evaluate_if_due(self, done: bool) -> None:
        every = self.config.evaluate_every
        if not every or self.evaluate is None or (self.step % every and not done):
            return
        if self.accelerator.is_main_process:
            self.model.eval()
            metrics = self.evaluate(self.step)
            self.model.train()
            if self.tracker is not None:
                self.tracker.log(self.step, metrics)
        self.accelerator.wait_for_everyone()

    # -- checkpoints ------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint on the main process while all others wait; return its folder."""
        state = {
            "batches": self.batches.state_dict(),
            "cost": self._summed_cost(),
            "processes": self.accelerator.num_processes,
            "record": self.record,
            "window": self._window,
        }
        folder = checkpoint_folder(self.run / "checkpoints", self.step)
        if self.accelerator.is_main_process:
            save_checkpoint(
                folder.parent,
                step=self.step,
                tensors={
                    "model": self.model.state_dict(),
                    "optimizer": optimizer_tensors(self.optimizer, self.parameters),
                    "method": self.method.state_dict(),
                },
                state=state,
                keep=self.config.keep_checkpoints,
            )
            if self.tracker is not None:
                self.tracker.checkpointed(self.step)
        self.accelerator.wait_for_everyone()
        return folder

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``, on any number of processes."""
        self.model.load_state_dict(checkpoint.tensors["model"])
        load_optimizer(self.optimizer, self.parameters, checkpoint.tensors["optimizer"])
        self.method.load_state_dict(checkpoint.tensors["method"])
        self.batches.load_state_dict(checkpoint.state["batches"])
        self.step = checkpoint.step
        # Absent in older checkpoints: then the first line averages the steps since the resume.
        window = checkpoint.state.get("window", {})
        self._window = {key: (total, count) for key, (total, count) in window.items()}
        cost = checkpoint.state["cost"]
        self.cost = {name: cost[name] / self.accelerator.num_processes for name in _SUMMED_COSTS}
        self.cost["skipped_steps"] = cost["skipped_steps"]

    def _summed_cost(self) -> Metrics:
        """Cost of all processes together; the number of skipped steps is the same on each."""
        own = torch.tensor([self.cost[name] for name in _SUMMED_COSTS], dtype=torch.float64)
        if self.accelerator.device.type == "mps":  # has no float64
            own = own.float()
        summed = self._sum(own.to(self.accelerator.device)).tolist()
        return {
            **dict(zip(_SUMMED_COSTS, summed, strict=True)),
            "skipped_steps": self.cost["skipped_steps"],
        }

    def _stop_signal(self) -> int | None:
        """The signal that any process has received, if any."""
        flags = torch.tensor(self._stop.flags, device=self.accelerator.device)
        return self._stop.first_of(self._sum(flags).tolist())


def _mix(*numbers: int) -> int:
    """Mix small integers to one 63-bit seed (splitmix64's finaliser)."""
    state = 0
    for number in numbers:
        state = (state + 0x9E3779B97F4A7C15 + number) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
