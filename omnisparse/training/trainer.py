"""The only training loop of the package.

A method yields losses. The loop normalises them over all processes, runs one backward pass for each
(all but the last without gradient synchronisation), clips, steps, logs and saves checkpoints.

Everything random is a pure function of (seed, step, process) or of (seed, epoch, utterance). So on
a CPU a resumed run repeats the uninterrupted run bit by bit, without saving any generator state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omnisparse.data.batching import Batch, TrainingBatches
from omnisparse.errors import OmnisparseError
from omnisparse.methods.base import Loss, Method
from omnisparse.models.base import SpeechModel
from omnisparse.training.checkpoint import Checkpoint, checkpoint_folder, save_checkpoint
from omnisparse.training.config import TrainingConfig
from omnisparse.training.cost import TrainingCost
from omnisparse.training.denormals import denormals_flushed
from omnisparse.training.heap import keep_freed_memory
from omnisparse.training.launch import precision_of
from omnisparse.training.micro_batches import micro_batches, raise_if_out_of_memory
from omnisparse.training.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from omnisparse.training.precision import check_resumed
from omnisparse.training.schedule import learning_rate
from omnisparse.training.stop_signals import InterruptedTrainingError, StopSignals
from omnisparse.training.tracking import Metrics, Tracker
from omnisparse.training.variants import MovingAverage, mean_of_checkpoints, write_variant
from omnisparse.training.window import Pending, Window

_AGREE_EVERY = 4
"""Steps after which several processes ask each other whether to stop."""


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
        evaluate: Called on every process every ``evaluate_every`` steps with the step; its
            metrics, the same on each, are logged.
        on_progress: Called on the main process after every step with (step, max_steps, metrics).
        stage: Told what the user should know, a line at a time, on the main process.
        micro_batch_seconds: Most audio that a process computes on at once, padding included, in
            seconds; None computes its part of a batch at once (or in ``config.accumulate`` parts).
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
        micro_batch_seconds: float | None = None,
    ) -> None:
        self.micro_batch_seconds = micro_batch_seconds
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
        self.average = MovingAverage(self.parameters, config.ema) if config.ema else None
        self.best: float | None = None
        self.step = 0
        self.cost = TrainingCost()
        self._skipped_in_a_row = 0
        self._window = Window()
        self._stop = StopSignals()

    # -- the loop ---------------------------------------------------------------------------

    def fit(self) -> Metrics:
        """Train until ``max_steps`` and return the last metrics.

        Raises:
            InterruptedTrainingError: If a signal requested a stop; a checkpoint is written first.
            OmnisparseError: If the gradient stays non-finite.
        """
        metrics: Metrics = self.cost.own()
        with self._stop.caught(), self.running():
            stream = iter(self.batches) if self.step < self.max_steps else iter(())
            for batch in stream:
                self.train_step(batch.to(self.accelerator.device))
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

    @contextmanager
    def running(self) -> Iterator[None]:
        """The state of the process and of the net in which steps are taken."""
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        self.module.train()
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        with denormals_flushed():
            yield

    def train_step(self, batch: Batch) -> None:
        """Take one optimizer step on a batch that is on the device; for use in :meth:`running`.

        Raises:
            OmnisparseError: If memory does not suffice, or the gradient stays non-finite.
        """
        with self.cost.of_step():
            self._step(batch, self.step)
        self.step += 1

    def _step(self, batch: Batch, step: int) -> None:
        torch.manual_seed(_mix(self.seed, step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config, self.max_steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.set_step(step)
        try:
            with self.cost.of_passes(is_copy=batch.is_copy):
                pending, passes = self._accumulate(batch, step)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise_if_out_of_memory(error, batch)
            raise
        norm = self._clip()
        if math.isfinite(norm):
            self.optimizer.step()
            self._skipped_in_a_row = 0
            if self.average is not None:
                self.average.update(self.parameters, step)
        else:
            self._skip(batch)
        self.method.on_step_end(step)
        self.cost.add_passes(passes)
        self._window.add(pending, {"gradient_norm": norm})

    def _accumulate(self, batch: Batch, step: int) -> tuple[list[Pending], int]:
        """Gradients of all losses of a batch, part by part; the losses and their passes."""
        parts = micro_batches(batch, self.config.accumulate, self.micro_batch_seconds)
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
                    total = self._sum(loss.num_units.float()) if units is None else units[index]
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
        return list(values.values()), passes

    @property
    def _accumulates(self) -> bool:
        return self.config.accumulate > 1 or self.micro_batch_seconds is not None

    def _units_in_advance(self, batch: Batch, step: int) -> list[Tensor]:
        """What each loss of a whole batch is divided by, over all processes."""
        counts = [0.0 if batch.is_copy else n for n in self.method.units(batch, step)]
        return list(self._sum(torch.tensor(counts, device=self.accelerator.device)))

    def _synchronised(self, *, last: bool) -> AbstractContextManager[Any]:
        # Forward and backward must both be inside no_sync: DDP decides in the forward pass.
        return nullcontext() if last else self.accelerator.no_sync(self.module)

    def _backward(self, loss: Loss, num_units: Tensor) -> Tensor:
        """Run a loss's backward, divided by the units of all processes; returns its sum.

        With a small batch a subnet may have no utterance; then it has no loss, and None is
        returned.
        """
        value_sum = loss.value_sum.float()
        # DDP averages gradients over processes; the factor makes that the sum over all units.
        factor = loss.weight * self.accelerator.num_processes
        self.accelerator.backward(value_sum * factor / num_units.clamp(min=1.0))
        return self._sum(value_sum.detach())

    def _sum(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        summed: Tensor = self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")
        return summed

    def _clip(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        return float(norm)

    def _skip(self, batch: Batch) -> None:
        """Count a step with a non-finite gradient; all processes have the same reduced gradient."""
        self.cost.skipped_steps += 1
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

    def _log(self) -> Metrics:
        metrics = self._window.flush()
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
        self.model.eval()
        metrics = self.evaluate(self.step)  # of all processes together, the same on each
        self.model.train()
        if self.tracker is not None:
            self.tracker.log(self.step, metrics)
        rate = metrics.get("dev/wer", math.inf)
        if rate < (math.inf if self.best is None else self.best):
            self.best = rate
            cost = self._summed_cost()
            if self.accelerator.is_main_process:
                self._write_variant("best", self.model.state_dict(), {"cost": cost})
        self.accelerator.wait_for_everyone()

    # -- checkpoints ------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint on the main process while all others wait; return its folder."""
        state = {
            "batches": self.batches.state_dict(),
            "cost": self._summed_cost(),
            "processes": self.accelerator.num_processes,
            "record": self.record,
            "window": self._window.sums(),
            "precision": precision_of(self.accelerator),
            "best": self.best,
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
                    **({} if self.average is None else {"ema": self.average.averages}),
                },
                state=state,
                keep=max(self.config.keep_checkpoints, self.config.average_checkpoints),
            )
            if self.step >= self.max_steps:
                self._write_averages(state)
            if self.tracker is not None:
                self.tracker.checkpointed(self.step)
        self.accelerator.wait_for_everyone()
        return folder

    def _write_averages(self, state: dict[str, Any]) -> None:
        """Weights that need the whole run; buffers are those of the net."""
        whole = self.model.state_dict()
        if self.average is not None:
            self._write_variant("ema", {**whole, **self.average.averages}, state)
        if self.config.average_checkpoints > 1:
            mean = mean_of_checkpoints(self.run / "checkpoints", self.config.average_checkpoints)
            self._write_variant("average", mean, state)

    def _write_variant(
        self, name: str, weights: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        state = {"record": self.record, "processes": self.accelerator.num_processes, **state}
        last = self.model.state_dict()
        write_variant(self.run, name, weights, last=last, step=self.step, state=state)

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``, on any number of processes.

        Raises:
            OmnisparseError: If it was trained in bf16, and this process trains in fp32.
        """
        check_resumed(checkpoint.state.get("precision"), precision_of(self.accelerator))
        self.model.load_state_dict(checkpoint.tensors["model"])
        load_optimizer(self.optimizer, self.parameters, checkpoint.tensors["optimizer"])
        self.method.load_state_dict(checkpoint.tensors["method"])
        self.batches.load_state_dict(checkpoint.state["batches"])
        if self.average is not None:
            self.average.load(checkpoint.tensors.get("ema", checkpoint.tensors["model"]))
        self.best = checkpoint.state.get("best")
        self.step = checkpoint.step
        # Absent in checkpoints of before: then the first line averages the steps since.
        self._window.restore(checkpoint.state.get("window", {}))
        self.cost.restore(checkpoint.state["cost"], self.accelerator.num_processes)

    def _summed_cost(self) -> Metrics:
        """Cost of all processes together."""
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64

        def add(own: list[float]) -> list[float]:
            total: list[float] = self._sum(torch.tensor(own, dtype=dtype, device=device)).tolist()
            return total

        return self.cost.summed(add)

    def _stop_signal(self) -> int | None:
        """The signal that told any process to stop, if one did; several ask every few steps."""
        if self.accelerator.num_processes == 1:
            return self._stop.number
        if self.step % _AGREE_EVERY and self.step < self.max_steps:
            return None
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
