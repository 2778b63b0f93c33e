"""What a training would take: `omnisparse train --dry-run`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.methods import StagedConfig
from omnisparse.pipeline.train import begin
from omnisparse.pipeline.training_data import TrainingData
from omnisparse.pipeline.training_parts import make_trainer, prepare_inputs
from omnisparse.runs.claim import claimed_run
from omnisparse.training.launch import precision_of
from omnisparse.training.memory import PeakMemory
from omnisparse.training.rehearsal import rehearse


def dry_run(
    config: RunConfig,
    *,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure a training by some of its steps; no run directory is made, and nothing of it kept.

    The embedded corpus and the features are made where the training will look for them, and stay.

    Args:
        config: The run configuration.
        on_step: Called with (steps taken, steps in all) on the main process.
        on_stage: Called with a line about each stage before the steps.

    Returns:
        ``steps`` of the whole run, ``peak_bytes`` and ``audio_seconds_per_second`` as of
        :class:`omnisparse.training.rehearsal.Rehearsal`, ``estimated_seconds`` of all steps,
        ``batch_audio_seconds`` of the largest batch, ``device``, ``precision``, ``processes``.

    Raises:
        OmnisparseError: If the data or the configuration cannot be used, or memory does not
            suffice.
    """
    if isinstance(config.method, StagedConfig):
        raise OmnisparseError(
            f"method {config.method.kind} trains several nets, a dry run is of one; legal: "
            "method=dense, which is the largest of them"
        )
    accelerator, stage = begin(config, on_stage)
    is_main = accelerator.is_main_process
    with ExitStack() as stack:
        folder = None  # of the main process, which tells the others
        if is_main:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dry-run-")))
        run, record = stack.enter_context(
            claimed_run(config, folder, accelerator, stage, row=None, size=None)
        )
        data = TrainingData(config, run, stage, accept_changes=False)
        inputs = prepare_inputs(config, run, accelerator, data)
        memory = PeakMemory(accelerator.device)
        trainer = make_trainer(
            config, run, record, accelerator, inputs,
            tracker=None, on_progress=None, stage=stage,
        )  # fmt: skip
        measured = rehearse(trainer, memory, on_step=on_step if is_main else lambda *_: None)
        accelerator.wait_for_everyone()  # before the folder is removed
    return {
        "steps": trainer.max_steps,
        "peak_bytes": measured.peak_bytes,
        "audio_seconds_per_second": measured.audio_seconds_per_second,
        "estimated_seconds": measured.seconds_per_step * trainer.max_steps,
        "batch_audio_seconds": measured.largest_audio_seconds,
        "device": accelerator.device.type,
        "precision": precision_of(accelerator),
        "processes": accelerator.num_processes,
    }
