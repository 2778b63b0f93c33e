"""From a run configuration to a trained run: corpus, tokenizer, features, model, method, loop."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lhotse import CutSet

from omnisparse.config import RunConfig, config_to_dict
from omnisparse.console import SWEEP, show_faults
from omnisparse.data.batch import text_of
from omnisparse.data.batching import TrainingBatches
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.filtering import filter_utterances
from omnisparse.data.pauses import cut_length
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.durable import replacing
from omnisparse.evaluation.evaluate import evaluate
from omnisparse.models import SpeechModel, build_model
from omnisparse.pipeline.splits import tell_unseen
from omnisparse.pipeline.starts import (
    Student,
    check_size,
    choose_extractor,
    load_method,
    require_models,
)
from omnisparse.pipeline.training_data import TrainingData
from omnisparse.runs import directory as runs
from omnisparse.runs.claim import claimed_run, finished_metrics
from omnisparse.runs.listing import summarize
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.training.checkpoint import Checkpoint, load_newest
from omnisparse.training.launch import make_accelerator, precision_of, wants_bf16
from omnisparse.training.tracking import Metrics, Tracker
from omnisparse.training.trainer import Trainer

StepProgress = Callable[[int, int, Metrics], None]
"""Called with (step, max_steps, metrics)."""


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
    is_helper: bool = False,
    accept_changes: bool = False,
    on_progress: StepProgress | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train what ``config`` describes and return the finished run.

    A run directory with the same configuration is continued from its newest checkpoint; a
    finished one is returned at once. Both are refused if the data, or the nets that the
    configuration names, differ from those with which the run began.

    Args:
        config: The run configuration.
        out: Run directory; None for ``runs/<name>``, or the first free ``runs/<name>-2`` and on.
        row: Row of a comparison for which the run is trained; recorded.
        size: Size for which the run is trained; recorded.
        is_helper: Whether the run is trained for another run, such as a teacher: ``runs/latest`` is
            not changed then, as in a sweep.
        accept_changes: Continue even if the training data, a teacher or ``init`` have changed since
            the run began.
        on_progress: Called after every optimizer step.
        on_stage: Called with a line about each stage before the loop.

    Raises:
        OmnisparseError: If the data, the configuration or the run directory cannot be used.
    """
    show_faults()
    accelerator = make_accelerator(config.training.precision)
    stage = on_stage if on_stage and accelerator.is_main_process else (lambda line: None)
    if precision_of(accelerator) == "fp32" and wants_bf16(config.training.precision):
        stage("this device has no bf16 instructions: it trains in fp32")
    require_models(config)
    with claimed_run(
        config, out, accelerator, stage, row=row, size=size, accept_changes=accept_changes
    ) as (run, record):
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
        return _train(config, run, record, accelerator, data, on_progress, moves_latest)


def _train(
    config: RunConfig,
    run: Path,
    record: dict[str, Any],
    accelerator: Accelerator,
    data: TrainingData,
    on_progress: StepProgress | None,
    moves_latest: bool,
) -> TrainResult:
    """Train in ``run``, which is locked for this training."""
    stage = data.stage
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    with accelerator.main_process_first():  # the others find corpus, tokenizer and features
        splits = data.load()
        if accelerator.is_main_process:
            data.check(splits)
        tokenizer = _tokenizer(config, splits.train, run, accelerator, stage)
        tell_unseen(splits, tokenizer, stage)
        cuts = splits.train
        stage(f"features of {len(cuts):,} utterances")
        features = _feature_store(config, cuts)
    checkpoint = load_newest(run / "checkpoints")
    is_fresh = checkpoint is None
    extractor = choose_extractor(config, features, run, stage, is_fresh=is_fresh)
    torch.manual_seed(config.seed)
    model = build_model(
        config.model, input_dim=extractor.input_dim, vocab_size=tokenizer.vocab_size
    )
    cuts, filtered = filter_utterances(
        cuts,
        tokenizer,
        output_lengths=lambda frames: int(model.output_lengths(torch.tensor([frames]))[0]),
        stack=config.data.features.stack,
        min_seconds=config.data.min_seconds,
        max_seconds=config.data.max_seconds,
    )
    if accelerator.is_main_process:
        _record_left_out(run, [*features.skipped, *filtered], stage)
    batches = _batches(config, cuts, features, extractor, tokenizer, accelerator)
    max_steps = config.training.max_steps
    if max_steps is None:
        max_steps = max(1, round(config.training.epochs * batches.steps_per_epoch))
    _describe(run, config, model, extractor.to_dict(), tokenizer, cuts, accelerator)
    check_size(config, model, stage)
    student = Student(model, extractor, tokenizer, is_fresh=is_fresh)
    tracker = None
    if accelerator.is_main_process:
        resumed = checkpoint.step if checkpoint else 0
        tracker = Tracker(
            run, config.tracking, run_config=config_to_dict(config), resumed_step=resumed
        )
    trainer = Trainer(
        model,
        load_method(config, student, cuts, features, accelerator, stage),
        batches,
        config.training,
        max_steps=max_steps,
        seed=config.seed,
        run=run,
        accelerator=accelerator,
        tracker=tracker,
        record={"max_steps": max_steps, "precision": precision_of(accelerator), **record},
        evaluate=_evaluator(config, model, cuts, splits.dev, extractor, tokenizer),
        on_progress=on_progress,
        stage=stage,
        micro_batch_seconds=config.data.micro_batch_seconds,
    )
    if checkpoint is not None:
        _load(trainer, checkpoint, stage)
        stage(f"continuing {run} at step {trainer.step} of {max_steps}")
    if moves_latest:
        runs.link_latest(run)
    metrics = None
    try:
        metrics = trainer.fit()
    finally:
        if tracker is not None:
            tracker.close(metrics)
    return TrainResult(run, trainer.step, metrics)


def _tokenizer(
    config: RunConfig,
    cuts: CutSet,
    run: Path,
    accelerator: Accelerator,
    stage: Callable[[str], None],
) -> Tokenizer:
    path = run / "tokenizer.model"
    if accelerator.is_main_process and not path.exists():
        if config.data.tokenizer is not None:
            stage(f"word pieces of {config.data.tokenizer}")
            runs.load_tokenizer(Path(config.data.tokenizer)).save(run)
            return Tokenizer.load(path)
        return Tokenizer.train((text_of(cut) for cut in cuts), config.data.vocab_size, run)
    return Tokenizer.load(path)


def _feature_store(config: RunConfig, cuts: CutSet) -> FeatureStore:
    augmentation = config.data.augmentation
    return FeatureStore.build(
        cuts,
        Path(config.corpus.root) / "features",
        num_bins=config.data.features.num_bins,
        sampling_rate=config.data.features.sampling_rate,
        noise_probability=augmentation.noise_probability,
        noise_snr_db=augmentation.noise_snr_db,
        seed=config.seed,
    )


def _batches(
    config: RunConfig,
    cuts: CutSet,
    features: FeatureStore,
    extractor: FeatureExtractor,
    tokenizer: Tokenizer,
    accelerator: Accelerator,
) -> TrainingBatches:
    data = config.data
    return TrainingBatches(
        cuts,
        features=features,
        extractor=extractor,
        tokenizer=tokenizer,
        batch_seconds=data.batch_seconds,
        max_batch_size=data.max_batch_size,
        num_buckets=data.num_buckets,
        short_first_epochs=data.short_first_epochs,
        spec_augment=data.augmentation.spec_augment(),
        unmasked_epochs=data.augmentation.unmasked_epochs,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


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


def _record_left_out(run: Path, items: list[Any], stage: Callable[[str], None]) -> None:
    """Name the utterances that training leaves out, in ``left_out.jsonl``."""
    path = run / "left_out.jsonl"
    if items:
        lines = [json.dumps(asdict(item)) + "\n" for item in items]
        with replacing(path) as partial:
            partial.write_text("".join(lines), encoding="utf-8")
        reasons = Counter(item.reason for item in items)
        counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        stage(f"{len(items):,} utterances left out ({counted}): see {path}")
    else:
        path.unlink(missing_ok=True)


def _describe(
    run: Path,
    config: RunConfig,
    model: SpeechModel,
    features: dict[str, Any],
    tokenizer: Tokenizer,
    cuts: CutSet,
    accelerator: Accelerator,
) -> None:
    if not accelerator.is_main_process:
        return
    patterns = getattr(config.method, "prunable", ())
    prunable = find_prunable(model, include=patterns)
    sizes = {"input_dim": model.input_dim, "vocab_size": tokenizer.vocab_size}
    runs.write_description(
        run,
        runs.RunDescription(
            model={**asdict(config.model), **sizes},
            features=features,
            prunable=list(prunable),
            parameters=[name for name, _ in model.named_parameters()],
            method=config.method.kind,
            block=getattr(config.method, "block", "1x1"),
            trained_seconds=_longest(cuts),
        ),
    )


def _longest(cuts: CutSet) -> float:
    """Seconds of the longest utterance."""
    return max(float(cut.duration) for cut in cuts)


def _evaluator(
    config: RunConfig,
    model: SpeechModel,
    cuts: CutSet,
    dev: CutSet,
    extractor: Any,
    tokenizer: Tokenizer,
) -> Callable[[int], Metrics] | None:
    if not config.training.evaluate_every or len(dev) == 0:
        return None
    # Evenly spread, so that every corpus of a joined dev split is represented.
    count = min(len(dev), config.training.evaluate_utterances)
    every = len(dev) / count
    listed = list(dev)
    subset = CutSet.from_cuts([listed[int(index * every)] for index in range(count)])

    # As users of the trained model will have it: a net that cannot hear more is given pieces.
    cut_above = cut_length(_longest(cuts), streams=model.streams)

    def dev_wer(step: int) -> Metrics:
        result = evaluate(
            model, subset, extractor=extractor, tokenizer=tokenizer, cut_above=cut_above
        )
        return {"dev/wer": result.wer, "dev/cer": result.cer}

    return dev_wer
