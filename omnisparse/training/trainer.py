"""The only training loop of the package.

A method yields losses. The loop normalises them over all processes, runs one backward pass for each
(all but the last without gradient synchronisation), clips, steps, logs and saves checkpoints.

Everything random is a pure function of (seed, step, process) or of (seed, epoch, utterance). So on
a CPU a resumed run repeats the uninterrupted run bit by bit, without saving any generator state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from omnisparse.data.batching import Batch, TrainingBatches
from omnisparse.errors import OmnisparseError
from omnisparse.methods.base import Method, model_to_keep
from omnisparse.models.base import SpeechModel
from omnisparse.sparsity.sharded_tensors import whole
from omnisparse.training.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    load_newest,
    remove_after,
    save_checkpoint,
)
from omnisparse.training.config import TrainingConfig
from omnisparse.training.cost import TrainingCost
from omnisparse.training.denormals import denormals_flushed
from omnisparse.training.fully_sharded import gathered, load_whole, prepare_module, whole_tensors
from omnisparse.training.gradients import Gradients
from omnisparse.training.heap import keep_freed_memory
from omnisparse.training.launch import precision_of
from omnisparse.training.micro_batches import raise_if_out_of_memory
from omnisparse.training.optimizer import freeze, load_optimizer, make_optimizer, optimizer_tensors
from omnisparse.training.precision import check_resumed
from omnisparse.training.schedule import learning_rate
from omnisparse.training.seeds import mix
from omnisparse.training.spikes import SpikeWatch
from omnisparse.training.stop_signals import (
    EvaluationAbandonedError,
    InterruptedTrainingError,
    StopSignals,
)
from omnisparse.training.tracking import Metrics, Tracker
from omnisparse.training.variants import MovingAverage, Weights, averages, write_variant
from omnisparse.training.watchdog import OTHER, READING, STEPPING, WAITING, Watchdog
from omnisparse.training.window import Window

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
        stop: Signals that are caught already; None catches them while the loop runs.
        watch: Told where this process is.
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
        stop: StopSignals | None = None,
        watch: Watchdog | None = None,
    ) -> None:
        self.config, self.max_steps, self.seed, self.run = config, max_steps, seed, run
        self.accelerator, self.tracker, self.record = accelerator, tracker, record or {}
        self.batches, self.method, self.model = batches, method, model
        self.evaluate, self.on_progress, self.stage = evaluate, on_progress, stage
        freeze(model, config.learning_rate_factors)
        self.module = prepare_module(accelerator, method.prepare(model, max_steps=max_steps))
        self.gradients = Gradients(
            method, self.module, accelerator,
            parts=config.accumulate, micro_batch_seconds=micro_batch_seconds,
        )  # fmt: skip
        self.parameters = dict(model.named_parameters())
        self.optimizer = make_optimizer(
            self.parameters, learning_rate=config.learning_rate, betas=config.betas,
            weight_decay=config.weight_decay, factors=config.learning_rate_factors,
        )  # fmt: skip
        self.average = MovingAverage(self.parameters, config.ema) if config.ema else None
        self.best: float | None = None
        self.step = 0
        self.cost = TrainingCost()
        self._skipped_in_a_row, self._window = 0, Window()
        self._stop = stop or StopSignals()
        self._watch = watch or Watchdog(timeout=0)
        self._spikes = SpikeWatch(config.rollback_factor, config.max_rollbacks)
        self._owes_evaluation = False

    # -- the loop ---------------------------------------------------------------------------

    def fit(self) -> Metrics:
        """Train until ``max_steps`` and return the last metrics.

        Raises:
            InterruptedTrainingError: If a signal requested a stop; a checkpoint is written first.
            OmnisparseError: If the gradient stays non-finite.
        """
        metrics: Metrics = {}  # until the first line of the log there is nothing to show
        with self._stop.caught(), self._stop.after_step(), self.running():
            self._catch_up()
            if self.step >= self.max_steps:
                self.save()  # the untrained net, or one whose last evaluation was owed
            for batch in self._batches():
                self.train_step(batch.to(self.accelerator.device))
                done = self.step >= self.max_steps
                if self.step % self.config.log_every == 0 or done:
                    metrics = self._log()
                    if self._spikes.is_spike(metrics) and self._go_back():
                        continue
                if self.accelerator.is_main_process and self.on_progress is not None:
                    self.on_progress(self.step, self.max_steps, metrics)
                if (name := model_to_keep(self.method, self.step)) is not None:
                    self._keep(name, record={**self.record, "max_steps": self.step})
                signal = self._stop_signal(now=self._evaluate_if_due(done))
                if self.step % self.config.checkpoint_every == 0 or done or signal is not None:
                    path = self.save()
                if signal is not None:
                    raise InterruptedTrainingError(signal, self.step, self.max_steps, path)
        return metrics or self.cost.own()

    def _batches(self) -> Iterator[Batch]:
        """Batches until all steps are taken."""
        stream = iter(self.batches) if self.step < self.max_steps else iter(())
        while self.step < self.max_steps:
            self._watch.at(READING, self.step)
            batch = next(stream)
            self._watch.at(STEPPING, self.step)
            yield batch

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
        torch.manual_seed(mix(self.seed, step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(step, self.config, self.max_steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.set_step(step)
        try:
            with self.cost.of_passes(is_copy=batch.is_copy):
                pending, passes = self.gradients.accumulate(batch, step)
            if math.isfinite(norm := self._clip()):
                self.optimizer.step()  # its first one takes memory for the moments
        except RuntimeError as error:  # torch's OutOfMemoryError is one
            raise_if_out_of_memory(error, batch)
            raise
        if math.isfinite(norm):
            self._skipped_in_a_row = 0
            if self.average is not None:
                self.average.update(self.parameters, step)
        else:
            self._skip(batch)
        self.method.on_step_end(step)
        self.cost.add_passes(passes, 0.0 if batch.is_copy else batch.audio_seconds)
        self._window.add(pending, {"gradient_norm": norm})

    def _clip(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        return float(whole(norm))

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
        if self._spikes.is_on:
            metrics["rollbacks"] = self._spikes.rollbacks
        if self.tracker is not None:
            self.tracker.log(self.step, metrics)
        return metrics

    def _evaluate_if_due(self, done: bool) -> bool:
        """Evaluate after this step if it is time to; whether it was."""
        every = self.config.evaluate_every
        if not every or self.evaluate is None or (self.step % every and not done):
            return False
        self._evaluate(self.evaluate)
        return True

    def _evaluate(self, evaluate: Callable[[int], Metrics]) -> None:
        """Evaluate on all processes together; a signal gives it up, and it is owed then."""
        self.model.eval()
        try:
            with self._watch.doing(OTHER), gathered(self.module):
                metrics = evaluate(self.step)  # the same on each process
        except EvaluationAbandonedError:
            metrics = {}
        self._owes_evaluation = not metrics
        self.model.train()
        if self.tracker is not None and metrics:
            self.tracker.log(self.step, metrics)
        rate = metrics.get("dev/wer", math.inf)
        if rate < (math.inf if self.best is None else self.best):
            self.best = rate
            self._keep("best")
        with self._watch.doing(WAITING):
            self.accelerator.wait_for_everyone()

    def _catch_up(self) -> None:
        """Do the evaluation that a signal cut short in the run before, if one did."""
        if not self._owes_evaluation or self.evaluate is None:
            return
        self._evaluate(self.evaluate)
        signal, path = self._stop_signal(now=True), self.save()
        if signal is not None:
            raise InterruptedTrainingError(signal, self.step, self.max_steps, path)

    def _go_back(self) -> bool:
        """After a spike, go back to the newest checkpoint before it; whether there is one.

        The batches since are left out. The steps since are paid for: the cost stays.
        """
        begin = (self.step - 1) // self.config.log_every * self.config.log_every
        may = self._spikes.rollbacks < self._spikes.most
        checkpoint = load_newest(self.run / "checkpoints", until=begin) if may else None
        if checkpoint is None:
            self.stage(f"the loss has a spike before step {self.step}; the run goes on with it")
            return False
        self.stage(self._spikes.go_back(self.step, checkpoint.step))
        self._load_net(checkpoint)
        self._spikes.forget_since(checkpoint.state.get("spikes", {}))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            remove_after(self.run / "checkpoints", self.step)
            if self.tracker is not None:
                self.tracker.go_back(self.step)
        return True

    # -- checkpoints ------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint on the main process while all others wait; return its folder."""
        state = {
            "batches": self.batches.state_dict(),
            "cost": self._summed_cost(),
            **{"processes": self.accelerator.num_processes, "record": self.record},
            "window": self._window.sums(),
            "precision": precision_of(self.accelerator),
            "best": self.best,
            **({"owes_evaluation": True} if self._owes_evaluation else {}),
            **({"spikes": self._spikes.state_dict()} if self._spikes.is_on else {}),
        }
        folder = checkpoint_folder(self.run / "checkpoints", self.step)
        optimizer = optimizer_tensors(self.optimizer, self.parameters)
        parts = {"model": self.model.state_dict(), "optimizer": optimizer}
        parts |= {} if self.average is None else {"ema": self.average.averages}
        tensors = {name: whole_tensors(part) for name, part in parts.items()}
        tensors["method"] = self.method.state_dict()
        if self.accelerator.is_main_process:
            with self._watch.doing(OTHER):
                self._write(folder, tensors, state)
        with self._watch.doing(WAITING):
            self.accelerator.wait_for_everyone()
        return folder

    def _keep(self, name: str, **more: Any) -> None:
        """Keep the net as it is now beside the run's last."""
        state = {"cost": self._summed_cost(), **more}
        weights = whole_tensors(self.model.state_dict())
        if self.accelerator.is_main_process:
            self._write_variant(name, weights, weights, state)

    def _write(self, folder: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        keep = max(self.config.keep_checkpoints, self.config.average_checkpoints)
        try:
            save_checkpoint(folder.parent, step=self.step, tensors=tensors, state=state, keep=keep)
        except OSError as error:
            raise OmnisparseError(
                f"{folder}: cannot be written ({error.strerror or error}); the checkpoints before "
                "it are whole, and the same command continues from the newest"
            ) from error
        if self.step >= self.max_steps:
            last, ema = tensors["model"], tensors.get("ema")
            for name, weights in averages(self.run, last, ema, self.config.average_checkpoints):
                self._write_variant(name, weights, last, state)
        if self.tracker is not None:  # a row is given away once, with its evaluation
            self.tracker.checkpointed(self.step - int(self._owes_evaluation))

    def _write_variant(self, name: str, weights: Weights, last: Weights, state: Any) -> None:
        state = {"record": self.record, "processes": self.accelerator.num_processes, **state}
        write_variant(self.run, name, weights, last=last, step=self.step, state=state)

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``, on any number of processes.

        Raises:
            OmnisparseError: If it was trained in bf16, and this process trains in fp32.
        """
        check_resumed(checkpoint.state.get("precision"), precision_of(self.accelerator))
        self._load_net(checkpoint)
        self.batches.load_state_dict(checkpoint.state["batches"])
        self.best = checkpoint.state.get("best")
        self._owes_evaluation = bool(checkpoint.state.get("owes_evaluation"))
        self._spikes.load_state_dict(checkpoint.state.get("spikes", {}))
        self.cost.restore(checkpoint.state["cost"], self.accelerator.num_processes)

    def _load_net(self, checkpoint: Checkpoint) -> None:
        """Weights, optimizer, method and step."""
        load_whole(self.model, checkpoint.tensors["model"])
        load_optimizer(self.optimizer, self.parameters, checkpoint.tensors["optimizer"])
        self.method.load_state_dict(checkpoint.tensors["method"])
        if self.average is not None:
            self.average.load(checkpoint.tensors.get("ema", checkpoint.tensors["model"]))
        self.step = checkpoint.step
        # Absent in checkpoints of before: then the first line averages the steps since.
        self._window.restore(checkpoint.state.get("window", {}))

    def _summed_cost(self) -> Metrics:
        """Cost of all processes together."""
        return self.cost.summed(self.gradients.sum_numbers)

    def _stop_signal(self, *, now: bool) -> int | None:
        """The signal that told any process to stop, if one did.

        Several processes ask each other every few steps, or ``now``.
        """
        if self.accelerator.num_processes == 1:
            return self._stop.number
        if self.step % _AGREE_EVERY and self.step < self.max_steps and not now:
            return None
        flags = torch.tensor(self._stop.flags, device=self.accelerator.device)
        return self._stop.first_of(self.gradients.sum(flags).tolist())
