"""From a run configuration to a trained run: corpus, tokenizer, features, model, method, loop."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from lhotse import CutSet

from omnisparse import runs
from omnisparse.config import CorpusConfig, RunConfig, config_to_dict, config_to_yaml
from omnisparse.data.batch import text_of
from omnisparse.data.batching import TrainingBatches
from omnisparse.data.corpora import load_manifest, perturb_speed
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.filtering import filter_utterances
from omnisparse.data.synthetic import SyntheticConfig, prepare_synthetic
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.durable import replacing
from omnisparse.errors import DataError, FormatError, OmnisparseError
from omnisparse.evaluation.evaluate import evaluate
from omnisparse.models import SpeechModel, build_model
from omnisparse.pipeline_methods import Student, check_size, load_method, require_models
from omnisparse.sparsity.supernet import find_prunable
from omnisparse.training.checkpoint import list_checkpoints, load_newest, read_state
from omnisparse.training.launch import make_accelerator
from omnisparse.training.tracking import Metrics, Tracker, flatten
from omnisparse.training.trainer import Trainer

StepProgress = Callable[[int, int, Metrics], None]
"""Called with (step, max_steps, metrics)."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    run: Path
    steps: int
    metrics: Metrics


@dataclass(frozen=True)
class Splits:
    """The cuts of a corpus configuration."""

    train: CutSet
    dev: CutSet
    test: dict[str, Path]
    """Test manifests by name."""


def train(
    config: RunConfig,
    *,
    out: Path | None = None,
    on_progress: StepProgress | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train what ``config`` describes and return the finished run.

    A run directory with the same configuration is continued from its newest checkpoint; a
    finished one is returned at once.

    Args:
        config: The run configuration.
        out: Run directory; None for ``runs/<name>``, or the first free ``runs/<name>-2`` and on.
        on_progress: Called after every optimizer step.
        on_stage: Called with a line about each stage before the loop.

    Raises:
        OmnisparseError: If the data, the configuration or the run directory cannot be used.
    """
    accelerator = make_accelerator()
    stage = on_stage if on_stage and accelerator.is_main_process else (lambda line: None)
    require_models(config)
    with ExitStack() as stack:
        run = _claim_run(config, out, accelerator, stack)
        return _train_in(run, config, accelerator, on_progress, stage)


def _train_in(
    run: Path,
    config: RunConfig,
    accelerator: Accelerator,
    on_progress: StepProgress | None,
    stage: Callable[[str], None],
) -> TrainResult:
    """Train in a claimed run directory."""
    finished = _finished(run, config)
    if finished is not None:
        runs.link_latest(run)
        return finished
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    with accelerator.main_process_first():  # the others find corpus, tokenizer, features made
        splits = load_splits(
            config.corpus, stage, speed_factors=config.data.augmentation.speed_factors
        )
        tokenizer = _tokenizer(config, splits.train, run, accelerator)
        cuts = splits.train
        stage(f"features of {len(cuts):,} utterances")
        features = _feature_store(config, cuts)
    extractor = features.extractor(config.data.features.stack)
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
    batches = _batches(config, cuts, features, tokenizer, accelerator)
    max_steps = config.training.max_steps
    if max_steps is None:
        max_steps = max(1, round(config.training.epochs * batches.steps_per_epoch))
    _describe(run, config, model, extractor.to_dict(), tokenizer, accelerator)
    check_size(config, model, stage)
    checkpoint = load_newest(run / "checkpoints")
    student = Student(model, extractor, tokenizer, is_fresh=checkpoint is None)
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
        record={"max_steps": max_steps, "commit": _commit()},
        evaluate=_evaluator(config, model, splits.dev, extractor, tokenizer),
        on_progress=on_progress,
    )
    if checkpoint is not None:
        trainer.load(checkpoint)
        stage(f"continuing {run} at step {trainer.step} of {max_steps}")
    if accelerator.is_main_process:
        runs.link_latest(run)
    metrics = None
    try:
        metrics = trainer.fit()
    finally:
        if tracker is not None:
            tracker.close(metrics)
    return TrainResult(run, trainer.step, metrics)


def load_splits(
    config: CorpusConfig,
    stage: Callable[[str], None] = lambda line: None,
    *,
    speed_factors: Sequence[float] = (1.0,),
) -> Splits:
    """Speak the embedded corpus if there is one and it is absent, and read all manifests.

    Args:
        config: The corpora.
        stage: Told what is being made.
        speed_factors: Speeds of which the training manifests give a copy each; the embedded
            corpus varies its rates by itself and is left alone.

    Raises:
        DataError: If a manifest cannot be used or the training split is empty.
    """
    base = Path(config.base)
    train = [perturb_speed(load_manifest(base / p), speed_factors) for p in config.train]
    dev = [load_manifest(base / path) for path in config.dev]
    tests = [base / path for path in config.test]
    if config.synthetic is not None:
        folder = synthetic_folder(config)
        stage(f"corpus {folder}")
        prepare_synthetic(config.synthetic, folder)
        train.append(load_manifest(folder / "train.jsonl"))
        dev.append(load_manifest(folder / "dev.jsonl"))
        tests.append(folder / "test.jsonl")
    joined = _join(train)
    if len(joined) == 0:
        raise DataError("the training split is empty")
    names = [f"{path.parent.name}-{path.name.split('.')[0]}" for path in tests]
    return Splits(joined, _join(dev), dict(zip(names, tests, strict=True)))


def synthetic_folder(config: CorpusConfig) -> Path:
    """Folder of the embedded corpus that ``config`` asks for; other settings, other folder."""
    synthetic = config.synthetic or SyntheticConfig()
    name = "books" if synthetic.text else synthetic.preset
    folder = f"{name}-{synthetic.hours:g}h-{synthetic.seed}"
    if synthetic.text or synthetic.snr_db:
        settings = repr((synthetic.preset, synthetic.text, synthetic.snr_db))
        folder += f"-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    return Path(config.root) / folder


def _join(parts: list[CutSet]) -> CutSet:
    """Put corpora together; a name that occurs twice gets its corpus's number."""
    joined: list[Any] = []
    seen: set[str] = set()
    for number, part in enumerate(parts):
        for cut in part:
            if cut.id in seen:
                cut = cut.with_id(f"{number}-{cut.id}")
            seen.add(cut.id)
            joined.append(cut)
    return CutSet.from_cuts(joined)


def _claim_run(
    config: RunConfig, out: Path | None, accelerator: Accelerator, stack: ExitStack
) -> Path:
    """Find or make the run directory, ours until ``stack`` ends; the main process decides."""
    chosen: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            chosen[0] = str(_choose_run(config, out, stack))
        except (OmnisparseError, OSError) as error:
            chosen[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(chosen)
    if chosen[1] is not None:
        raise OmnisparseError(chosen[1])
    return Path(chosen[0])


def _choose_run(config: RunConfig, out: Path | None, stack: ExitStack) -> Path:
    document = config_to_dict(config)
    if out is not None:
        out = out.resolve()  # `runs/latest` means the run, not the link
        differing = _differing_key(out, document)
        if differing is not None:
            raise OmnisparseError(f"{out}: holds a run of another configuration ({differing})")
        return _make_run(out, config, stack)
    number = 1
    while True:
        run = runs.RUNS / (config.name if number == 1 else f"{config.name}-{number}")
        if _differing_key(run, document) is None:
            return _make_run(run, config, stack)
        number += 1


def _make_run(run: Path, config: RunConfig, stack: ExitStack) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    stack.enter_context(_locked(run))
    if not list_checkpoints(run / "checkpoints"):
        for stale in ("tokenizer.model", "tokens.txt", "model.json", "metrics.jsonl", "wandb-id"):
            (run / stale).unlink(missing_ok=True)
    with replacing(run / "config.yaml") as partial:
        partial.write_text(config_to_yaml(config), encoding="utf-8")
    return run


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keep other processes from training in ``run``; a killed holder holds nothing."""
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OmnisparseError(
                f"{run}: another process is training there; wait for it, or name another directory"
            ) from None
        yield


def _differing_key(run: Path, document: dict[str, Any]) -> str | None:
    """Name what keeps ``run`` from being used for ``document``; None if nothing does."""
    if not run.exists() or (run.is_dir() and all(path.name == ".lock" for path in run.iterdir())):
        return None
    if (run / "config.yaml").is_file() and not list_checkpoints(run / "checkpoints"):
        return None  # it failed before its first checkpoint: nothing of it is worth keeping
    try:
        existing = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return "it has no readable config.yaml"
    if not isinstance(existing, dict):
        return "it has no readable config.yaml"
    old, new = flatten(existing), flatten(document)
    for key in [*new, *old]:
        if key.startswith("tracking.") or key == "training.threads":
            continue  # where metrics go and how many cores are used do not change a run
        if old.get(key) != new.get(key):
            return f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
    return None


def _finished(run: Path, config: RunConfig) -> TrainResult | None:
    """The result of ``run`` if it has taken all its steps."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints or not (run / "model.json").exists():
        return None
    try:
        document = read_state(checkpoints[-1])
    except FormatError:
        return None  # loading falls back to the checkpoint before it
    if document["step"] < document["state"].get("record", {}).get("max_steps", math.inf):
        return None
    records = run / "metrics.jsonl"  # a run of no steps has none
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    metrics: Metrics = {}
    for line in map(json.loads, lines):
        if line.pop("step") == document["step"]:
            metrics |= line
    return TrainResult(run, document["step"], {**metrics, **document["state"]["cost"]})


def _tokenizer(config: RunConfig, cuts: CutSet, run: Path, accelerator: Accelerator) -> Tokenizer:
    path = run / "tokenizer.model"
    if accelerator.is_main_process and not path.exists():
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
    tokenizer: Tokenizer,
    accelerator: Accelerator,
) -> TrainingBatches:
    data = config.data
    return TrainingBatches(
        cuts,
        features=features,
        extractor=features.extractor(data.features.stack),
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


def _record_left_out(run: Path, items: list[Any], stage: Callable[[str], None]) -> None:
    """Name the utterances that training leaves out, in ``left_out.jsonl``."""
    if items:
        lines = [json.dumps(asdict(item)) + "\n" for item in items]
        (run / "left_out.jsonl").write_text("".join(lines), encoding="utf-8")
        stage(f"{len(items)} utterances left out: see {run / 'left_out.jsonl'}")


def _describe(
    run: Path,
    config: RunConfig,
    model: SpeechModel,
    features: dict[str, Any],
    tokenizer: Tokenizer,
    accelerator: Accelerator,
) -> None:
    if not accelerator.is_main_process:
        return
    patterns = getattr(config.method, "prunable", ())
    prunable = find_prunable(model, **({"include": patterns} if patterns else {}))
    sizes = {"input_dim": model.input_dim, "vocab_size": tokenizer.vocab_size}
    runs.write_description(
        run,
        runs.RunDescription(
            model={**asdict(config.model), **sizes},
            features=features,
            prunable=list(prunable),
            parameters=[name for name, _ in model.named_parameters()],
            method=config.method.kind,
        ),
    )


def _evaluator(
    config: RunConfig, model: SpeechModel, dev: CutSet, extractor: Any, tokenizer: Tokenizer
) -> Callable[[int], Metrics] | None:
    if not config.training.evaluate_every or len(dev) == 0:
        return None
    # Evenly spread, so that every corpus of a joined dev split is seen.
    count = min(len(dev), config.training.evaluate_utterances)
    every = len(dev) / count
    listed = list(dev)
    subset = CutSet.from_cuts([listed[int(index * every)] for index in range(count)])

    def dev_wer(step: int) -> Metrics:
        result = evaluate(model, subset, extractor=extractor, tokenizer=tokenizer)
        return {"dev/wer": result.wer}

    return dev_wer


def _commit() -> str | None:
    """The commit of the working tree the package runs from, if it is one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None  # no git here
    return answer.stdout.strip() or None
