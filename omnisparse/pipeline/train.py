"""From a run configuration to a trained run: corpus, tokenizer, features, model, method, loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from omnisparse.config import RunConfig, config_to_dict
from omnisparse.console import SWEEP, show_faults
from omnisparse.methods import ProgressiveConfig, StagedConfig
from omnisparse.pipeline.progressive import progressive_stages
from omnisparse.pipeline.rank_stages import rank_stages
from omnisparse.pipeline.splits import require_manifests
from omnisparse.pipeline.starts import require_models
from omnisparse.pipeline.training_data import TrainingData
from omnisparse.pipeline.training_parts import StepProgress, make_trainer, prepare_inputs
from omnisparse.runs import directory as runs
from omnisparse.runs.claim import claimed_run, finished_metrics
from omnisparse.runs.listing import summarize
from omnisparse.training.checkpoint import Checkpoint, list_checkpoints
from omnisparse.training.launch import make_accelerator, precision_of, wants_bf16
from omnisparse.training.stop_signals import InterruptedTrainingError, StopSignals
from omnisparse.training.tracking import Metrics, Tracker
from omnisparse.training.trainer import Trainer
from omnisparse.training.watchdog import Watchdog, job_store


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    run: Path
    steps: int
    metrics: Metrics


def train(
    config: RunConfig,
    *,
    out: Path | None = None,
    row: str | None = None,
    size: str | None = None,
    search_evaluations: int = 0,
    needed: Sequence[Path] = (),
    is_helper: bool = False,
    accept_changes: bool = False,
    on_progress: StepProgress | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train what ``config`` describes and return the finished run.

    A method of several stages trains one run after the other; the last one is the result. A run
    directory with the same configuration is continued from its newest checkpoint; a
    finished one is returned at once. Both are refused if the data, or the nets that the
    configuration names, differ from those with which the run began.

    Args:
        config: The run configuration.
        out: Run directory; None for ``runs/<name>``, or the first free ``runs/<name>-2`` and on.
        row: Row of a comparison for which the run is trained; recorded.
        size: Size for which the run is trained; recorded.
        search_evaluations: Models that were evaluated to find the net; recorded.
        needed: Runs whose cost belongs to that of this one, beside ``init`` and the teacher.
        is_helper: Whether the run is trained for another run, such as a teacher: ``runs/latest`` is
            not changed then, as in a sweep.
        accept_changes: Continue even if the training data, a teacher or ``init`` have changed since
            the run began.
        on_progress: Called after every optimizer step.
        on_stage: Called with a line about each stage before the loop.

    Raises:
        OmnisparseError: If the data, the configuration or the run directory cannot be used.
    """
    stop = StopSignals()
    with stop.caught(), stop.at_once():
        accelerator, stage = begin(config, on_stage)
        if isinstance(config.method, StagedConfig):
            return _train_stages(
                config, out, accelerator, stage, row=row, size=size, is_helper=is_helper,
                accept_changes=accept_changes, on_progress=on_progress, on_stage=on_stage,
            )  # fmt: skip
        watch = Watchdog(
            timeout=config.training.timeout,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            store=job_store(),
            tell=stage,
        )
        with watch.running():
            try:
                return _train_one(
                    config, out, accelerator, stop, watch, on_progress,
                    row=row, size=size, search_evaluations=search_evaluations, needed=needed,
                    is_helper=is_helper, accept_changes=accept_changes,
                )  # fmt: skip
            except RuntimeError as error:
                watch.raise_if_lost(error)
                raise


def _train_one(
    config: RunConfig,
    out: Path | None,
    accelerator: Accelerator,
    stop: StopSignals,
    watch: Watchdog,
    on_progress: StepProgress | None,
    *,
    row: str | None,
    size: str | None,
    search_evaluations: int,
    needed: Sequence[Path],
    is_helper: bool,
    accept_changes: bool,
) -> TrainResult:
    """Train one run in the directory that is found or made for it."""
    stage = watch.stage
    if not list_checkpoints((out or Path("runs") / config.name) / "checkpoints"):
        require_manifests(config.corpus)  # a run that has begun says more of what has changed
    with claimed_run(
        config, out, accelerator, stage, row=row, size=size,
        search_evaluations=search_evaluations, needed=needed, accept_changes=accept_changes,
    ) as (run, record):  # fmt: skip
        stage(f"run {run}: {summarize(run).describe()}")
        data = TrainingData(config, run, stage, accept_changes=accept_changes)
        moves_latest = accelerator.is_main_process and not is_helper and not is_in_sweep()
        finished = finished_metrics(run)
        if finished is not None:
            if accelerator.is_main_process:
                data.check_finished()
            if moves_latest:
                runs.link_latest(run)
            return TrainResult(run, *finished)
        return _train(
            config, run, record, accelerator, data, on_progress, moves_latest, stop, watch
        )


def _train_stages(
    config: RunConfig,
    out: Path | None,
    accelerator: Accelerator,
    tell: Callable[[str], None],
    *,
    row: str | None,
    size: str | None,
    is_helper: bool,
    **options: Any,
) -> TrainResult:
    """Train the stages of a method, each as a run of its own; the last one is the result."""
    plan = progressive_stages if isinstance(config.method, ProgressiveConfig) else rank_stages
    stages = plan(config, out, row=row, size=size, tell=tell)
    send: Path | None = None
    while True:
        # What is decided between stages is measured by the main process; the others read it.
        with accelerator.main_process_first():
            stage = next(stages) if send is None else stages.send(send)
        chosen = stage.config
        if not stage.is_last and os.environ.get("WANDB_SWEEP_ID"):  # the agent's run is the result
            chosen = replace(chosen, tracking=replace(chosen.tracking, wandb="off"))
        result = train(
            chosen, out=stage.out, row=stage.row, size=stage.size,
            search_evaluations=stage.search_evaluations, needed=stage.needed,
            is_helper=is_helper or not stage.is_last, **options,
        )  # fmt: skip
        if stage.is_last:
            return result
        send = result.run


def begin(
    config: RunConfig, on_stage: Callable[[str], None] | None
) -> tuple[Accelerator, Callable[[str], None]]:
    """The processes of a training, and what its lines are told to (on the main process).

    Raises:
        OmnisparseError: If the launcher asks for something else than the configuration, or a net
            that it names is missing.
    """
    show_faults()
    accelerator = make_accelerator(config.training.precision)
    stage = on_stage if on_stage and accelerator.is_main_process else (lambda line: None)
    if precision_of(accelerator) == "fp32" and wants_bf16(config.training.precision):
        stage("this device has no bf16 instructions: it trains in fp32")
    require_models(config)
    return accelerator, stage


def _train(
    config: RunConfig,
    run: Path,
    record: dict[str, Any],
    accelerator: Accelerator,
    data: TrainingData,
    on_progress: StepProgress | None,
    moves_latest: bool,
    stop: StopSignals,
    watch: Watchdog,
) -> TrainResult:
    """Train in ``run``, which is locked for this training."""
    inputs = prepare_inputs(config, run, accelerator, data)
    checkpoint = inputs.checkpoint
    tracker = None
    if accelerator.is_main_process:
        resumed = checkpoint.step if checkpoint else 0
        tracker = Tracker(
            run, config.tracking, run_config=config_to_dict(config), resumed_step=resumed,
            is_line_open=checkpoint is not None and "owes_evaluation" in checkpoint.state,
        )  # fmt: skip
    trainer = make_trainer(
        config, run, record, accelerator, inputs,
        tracker=tracker, on_progress=on_progress, stage=data.stage, stop=stop, watch=watch,
    )  # fmt: skip
    if checkpoint is not None:
        _load(trainer, checkpoint, data.stage)
        data.stage(f"continuing {run} at step {trainer.step} of {trainer.max_steps}")
    if moves_latest:
        runs.link_latest(run)
    with stop.after_step():
        return TrainResult(run, trainer.max_steps, _fit(trainer, tracker, watch))


def _fit(trainer: Trainer, tracker: Tracker | None, watch: Watchdog) -> Metrics:
    """Train; W&B learns how it ended."""
    metrics = None
    try:
        metrics = trainer.fit()
    except InterruptedTrainingError as error:
        if tracker is not None and error.number != signal.SIGINT:  # that was a person
            tracker.preempted()
        raise
    except RuntimeError as error:
        watch.raise_if_lost(error)
        raise
    finally:
        if tracker is not None:
            tracker.close(metrics)
    return metrics


def _load(trainer: Trainer, checkpoint: Checkpoint, stage: Callable[[str], None]) -> None:
    """Continue from ``checkpoint``; where its place is not in the data any more, an epoch later."""
    try:
        trainer.load(checkpoint)
    except ValueError:
        epoch = int(checkpoint.state["batches"]["epoch"]) + 1
        checkpoint.state["batches"] = {"epoch": epoch, "batches": 0}
        trainer.load(checkpoint)
        stage(f"the data has fewer batches than before: it goes on with epoch {epoch}")


def is_in_sweep() -> bool:
    """Whether a sweep (ours, or an agent of W&B) started this process."""
    return bool(os.environ.get(SWEEP) or os.environ.get("WANDB_SWEEP_ID"))
