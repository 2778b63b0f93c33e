"""The data, net, method and loop of a training, from its configuration."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lhotse import CutSet

from omnisparse.config import RunConfig
from omnisparse.data.batch import text_of
from omnisparse.data.batching import TrainingBatches
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.filtering import filter_utterances
from omnisparse.data.live_features import FrameSource
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.durable import replacing
from omnisparse.errors import OmnisparseError
from omnisparse.methods.base import described_by, first_step, notes_of
from omnisparse.models import SpeechModel, build_model
from omnisparse.pipeline.dev_evaluation import check_evaluate_sizes, dev_evaluator, longest
from omnisparse.pipeline.frames import frame_source
from omnisparse.pipeline.splits import tell_unseen
from omnisparse.pipeline.starts import (
    Student,
    check_size,
    choose_extractor,
    keep_parts,
    load_method,
    pieces_of_start,
)
from omnisparse.pipeline.training_data import TrainingData
from omnisparse.runs import directory as runs
from omnisparse.sparsity.patterns import matched_by_none
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.training.checkpoint import Checkpoint, load_newest
from omnisparse.training.fully_sharded import LEGAL_METHODS, is_sharded
from omnisparse.training.launch import precision_of
from omnisparse.training.stop_signals import StopSignals
from omnisparse.training.tracking import Metrics, Tracker
from omnisparse.training.trainer import Trainer
from omnisparse.training.watchdog import Watchdog

StepProgress = Callable[[int, int, Metrics], None]
"""Called with (step, max_steps, metrics)."""


@dataclass(frozen=True)
class Inputs:
    """What a training reads: utterances, their features and word pieces, and where it goes on."""

    cuts: CutSet
    dev: CutSet
    tokenizer: Tokenizer
    features: FrameSource
    extractor: FeatureExtractor
    checkpoint: Checkpoint | None


def prepare_inputs(
    config: RunConfig, run: Path, accelerator: Accelerator, data: TrainingData
) -> Inputs:
    """Read the data of a run; make what is missing of corpus, word pieces and features."""
    stage = data.stage
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    with accelerator.main_process_first():  # the others find corpus, tokenizer and features
        splits = data.load()
        if accelerator.is_main_process:
            data.check(splits)
        tokenizer = _tokenizer(config, splits.train, run, accelerator, stage)
        tell_unseen(splits, tokenizer, stage)
        stage(f"features of {len(splits.train):,} utterances")
        features = frame_source(config, splits.train, stage)
    checkpoint = load_newest(run / "checkpoints", stage)
    if accelerator.is_main_process and checkpoint is not None:
        before = checkpoint.state.get("record", {}).get("recordings", "")
        data.check_recordings(before, features.recordings())
    extractor = choose_extractor(config, features, run, stage, is_fresh=checkpoint is None)
    return Inputs(splits.train, splits.dev, tokenizer, features, extractor, checkpoint)


def make_trainer(
    config: RunConfig,
    run: Path,
    record: dict[str, Any],
    accelerator: Accelerator,
    inputs: Inputs,
    *,
    tracker: Tracker | None,
    on_progress: StepProgress | None,
    stage: Callable[[str], None],
    stop: StopSignals | None = None,
    watch: Watchdog | None = None,
) -> Trainer:
    """The net and the loop of a run, which is described in its directory."""
    if is_sharded(accelerator) and config.method.kind not in LEGAL_METHODS:
        raise OmnisparseError(
            f"method {config.method.kind} does not train with FSDP; legal: "
            + ", ".join(LEGAL_METHODS)
        )
    features, extractor, tokenizer = inputs.features, inputs.extractor, inputs.tokenizer
    torch.manual_seed(config.seed)
    model = build_model(
        config.model, input_dim=extractor.input_dim, vocab_size=tokenizer.vocab_size
    )
    if inputs.checkpoint is not None:
        config = keep_parts(config, model, run)
    cuts, filtered = filter_utterances(
        inputs.cuts,
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
    recordings = features.recordings() if accelerator.is_main_process else ""
    student = Student(model, extractor, tokenizer, is_fresh=inputs.checkpoint is None)
    method, decoding = load_method(config, student, cuts, features, accelerator, stage)
    record = {
        **{"max_steps": max_steps, "precision": precision_of(accelerator)},
        **{"recordings": recordings, **record},
    }
    if decoding is not None:
        record["decoding"] = decoding._asdict()
    trainer = Trainer(
        model,
        method,
        batches,
        config.training,
        max_steps=max_steps,
        seed=config.seed,
        run=run,
        accelerator=accelerator,
        tracker=tracker,
        record=record,
        evaluate=dev_evaluator(
            config, model, cuts, inputs.dev, extractor, tokenizer, accelerator, stop, method
        ),
        on_progress=on_progress,
        stage=stage,
        micro_batch_seconds=config.data.micro_batch_seconds,
        stop=stop,
        watch=watch,
    )
    check_evaluate_sizes(config.training.evaluate_sizes, method)
    for line in (*notes_of(method), *_never_trained(model, max_steps)):
        stage(line)
    trainer.record |= described_by(method)
    return trainer


def _never_trained(model: SpeechModel, max_steps: int) -> tuple[str, ...]:
    """A line for the user, if a run ends before every part of its net has begun to learn."""
    begins = first_step(model, [name for name, _ in model.named_parameters()])
    if not 0 < max_steps <= begins:
        return ()
    return (
        f"a part of the net keeps its random weights: it learns from step {begins:,} on "
        f"(model.predictor_warmup, model.joiner_warmup), and this run ends after {max_steps:,}",
    )


def _tokenizer(
    config: RunConfig,
    cuts: CutSet,
    run: Path,
    accelerator: Accelerator,
    stage: Callable[[str], None],
) -> Tokenizer:
    path = run / "tokenizer.model"
    if accelerator.is_main_process and not path.exists():
        given, source = pieces_of_start(config)
        if given is not None:
            stage(f"word pieces of {source}")
            given.save(run)
            return Tokenizer.load(path)
        return Tokenizer.train((text_of(cut) for cut in cuts), config.data.vocab_size, run)
    return Tokenizer.load(path)


def _batches(
    config: RunConfig,
    cuts: CutSet,
    features: FrameSource,
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
        workers=data.workers,
    )


def _record_left_out(run: Path, items: list[Any], stage: Callable[[str], None]) -> None:
    """Name the utterances that training leaves out, in ``left_out.jsonl``."""
    path = run / "left_out.jsonl"
    if items:
        lines = [json.dumps(asdict(item)) + "\n" for item in items]
        with replacing(path) as partial:
            partial.write_text("".join(lines), encoding="utf-8")
        reasons = Counter(item.reason for item in items)
        counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        what = "1 utterance" if len(items) == 1 else f"{len(items):,} utterances"
        stage(f"{what} left out ({counted}), named in {path.name} of the run")
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
    prunable = find_prunable(model, include=patterns, may_be_empty=bool(config.model.ranks))
    sizes = {"input_dim": model.input_dim, "vocab_size": tokenizer.vocab_size}
    runs.write_description(
        run,
        runs.RunDescription(
            model={**asdict(config.model), **sizes},
            features=features,
            prunable=list(prunable),
            parameters=list(model.shipped_parameters()),
            training_only=list(model.training_only()),
            method=config.method.kind,
            block=getattr(config.method, "block", "1x1"),
            single=matched_by_none(prunable, getattr(config.method, "block_matrices", ())),
            trained_seconds=longest(cuts),
        ),
    )
