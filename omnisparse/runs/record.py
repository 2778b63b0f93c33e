"""The cost of a run and the other runs that it needed, read from its newest checkpoint.

A checkpoint's ``record`` holds seed, commit, the row and size that a recipe gave the run, and its
``sources``: the runs whose weights it started from or learned from. The costs and sources of these
runs are copied, so that the total cost stays complete if they are deleted later.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.errors import FormatError
from omnisparse.evaluation.account import TrainingAccount, sum_known
from omnisparse.runs import directory as runs
from omnisparse.runs import foreign
from omnisparse.runs.weights import run_name

if TYPE_CHECKING:
    from omnisparse.config import RunConfig

PART = "part"
"""Row of a run that is only a part of another row's training; it is in no table."""

SOURCE_KEYS = ("teacher", "init")
"""Configuration keys, at any depth, whose value is the path of a run or artifact."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, identified by its weights, and its own cost."""

    run: str
    """Name of the run directory."""
    identity: str
    """Step and checksum of its weights, so that the same training is counted only once."""
    utterance_passes: float = 0.0
    """Decoded utterances included: each is one pass."""
    optimizer_steps: int = 0
    device_seconds: float = 0.0
    search_evaluations: int = 0
    flops: float | None = None
    """Floating-point operations; None where they were not counted."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The record of a run beside its weights."""

    training: Training
    """The run's own training."""
    sources: tuple[Training, ...]
    """The trainings that it needed, and those that these needed; each once."""
    row: str | None
    """Row of the comparison for which the recipe trained it, such as ``pruned``."""
    size: str | None
    """Size for which the recipe trained it, such as ``25%``; None for the whole net."""
    seed: int | None
    commit: str | None
    max_steps: int | None = None
    """Optimizer steps of the whole run; None where its checkpoint does not say it."""
    weights: str = "last"
    """Which of its weights these are: ``last``, ``ema``, ``average``, ``best``, or a kept size."""

    @property
    def source_block(self) -> dict[str, Any]:
        """The origin of this run as an artifact states it."""
        return {
            "run": self.training.run,
            "weights": self.weights,
            "step": self.training.optimizer_steps,
            "identity": self.training.identity,
            **self.account.to_dict(),
        }

    @property
    def account(self) -> TrainingAccount:
        """The cost of the run, a part of every result row."""
        own = self.training
        return TrainingAccount(
            utterance_passes=own.utterance_passes,
            optimizer_steps=own.optimizer_steps,
            device_seconds=own.device_seconds,
            search_evaluations=own.search_evaluations,
            teacher_utterance_passes=sum(source.utterance_passes for source in self.sources),
            teacher_device_seconds=sum(source.device_seconds for source in self.sources),
            flops=own.flops,
            teacher_flops=sum_known(source.flops for source in self.sources),
            seed=self.seed,
            commit=self.commit,
        )


def read_record(run: Path) -> RunRecord:
    """Read the record of the newest valid checkpoint of ``run``, or of the given checkpoint.

    Args:
        run: A run directory, or the folder of one of its checkpoints.

    Raises:
        FormatError: If it is neither, or has no valid checkpoint.
    """
    from omnisparse.training.checkpoint import read_state

    if run.parent.name == "checkpoints":
        return _record_of(run.parents[1], read_state(run), run)
    return _record_of(run, runs.newest_checkpoint(run)[1], run)


def _record_of(run: Path, document: Mapping[str, Any], path: Path) -> RunRecord:
    state = document["state"]
    record, cost = state.get("record", {}), state.get("cost", {})
    decoding = record.get("decoding", {})
    try:
        flops = sum_known((cost.get("flops"), decoding.get("flops", 0.0)))
        weights = document["files"][runs.WEIGHTS]
        return RunRecord(
            training=Training(
                run=run_name(run),
                identity=f"{document['step']}-{int(weights['crc32']):08x}",
                utterance_passes=float(cost.get("utterance_passes", 0.0))
                + float(decoding.get("utterances", 0.0)),
                optimizer_steps=document["step"],
                device_seconds=float(cost.get("device_seconds", 0.0))
                + float(decoding.get("device_seconds", 0.0)),
                search_evaluations=int(record.get("search_evaluations", 0)),
                flops=flops,
            ),
            sources=tuple(Training(**source) for source in record.get("sources", ())),
            row=record.get("row"),
            size=record.get("size"),
            seed=record.get("seed"),
            commit=record.get("commit"),
            max_steps=record.get("max_steps"),
            weights=str(state.get("weights", "last")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: its checkpoint's record cannot be read ({error})") from error


def read_account(model: Path) -> TrainingAccount:
    """The cost of MODEL: of a run, or of the run from which an artifact or nested file was made.

    Raises:
        OmnisparseError: If MODEL is none of these, or damaged.
    """
    from omnisparse.artifact import is_artifact

    is_made = model.is_file() or is_artifact(model)
    return _source_block(model)[1] if is_made else read_record(model).account


def _source_block(artifact: Path) -> tuple[dict[str, Any], TrainingAccount]:
    """The origin that an artifact or nested file states, and its cost."""
    from omnisparse.artifact import read_config
    from omnisparse.nested import NestedFile

    if artifact.is_file():
        with contextlib.closing(NestedFile(artifact)) as nested:
            source = nested.header.config.get("source")
    else:
        source = read_config(artifact)[0].get("source")
    if not isinstance(source, dict):
        return {}, TrainingAccount()  # written by a program without accounts
    try:
        return source, TrainingAccount.from_dict(source)
    except ValueError as error:
        raise FormatError(f"{artifact}: config.json: source: {error}") from error


def make_record(
    config: RunConfig,
    *,
    row: str | None,
    size: str | None,
    commit: str | None,
    search_evaluations: int = 0,
    needed: Iterable[Path] = (),
) -> dict[str, Any]:
    """The record that a training of ``config`` stores in every checkpoint.

    Raises:
        OmnisparseError: If a run that the configuration names cannot be read.
    """
    sources: dict[str, Training] = {}
    starts: dict[str, str] = {}
    for key, path in _source_paths(config):
        if foreign.is_foreign(str(path)):
            starts[key] = foreign.identity_of(str(path))
            continue
        for training in _trainings_of(path):
            sources.setdefault(training.identity, training)
        starts[key] = identity_of(path)
    for path in needed:
        for training in _trainings_of(path):
            sources.setdefault(training.identity, training)
    if config.data.tokenizer is not None:
        pieces = runs.load_tokenizer(Path(config.data.tokenizer)).to_bytes()
        starts["data.tokenizer"] = hashlib.sha256(pieces).hexdigest()[:8]
    return {
        "row": row,
        "size": size,
        "seed": config.seed,
        "commit": commit,
        "search_evaluations": search_evaluations,
        "sources": [asdict(training) for training in sources.values()],
        "starts": starts,
    }


def _source_paths(config: RunConfig) -> Iterable[tuple[str, Path]]:
    """Keys of the configuration that name a run or artifact, and the paths that they name."""
    from omnisparse.config import config_to_dict
    from omnisparse.training.tracking import flatten

    for key, value in flatten(config_to_dict(config)).items():
        if key.rpartition(".")[2] in SOURCE_KEYS and isinstance(value, str) and value:
            yield key, Path(value)


def identity_of(path: Path) -> str:
    """A name of the weights of a run, checkpoint or artifact; other weights have another name."""
    from omnisparse.artifact import is_artifact

    if not is_artifact(path):
        return read_record(path.resolve()).training.identity
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.name.encode() + file.read_bytes())
    return f"{_source_block(path)[0].get('identity', path.name)}/{digest.hexdigest()[:8]}"


def _trainings_of(path: Path) -> list[Training]:
    """The training of a run or artifact, and the trainings that it needed."""
    from omnisparse.artifact import is_artifact

    runs.require_directory(path)
    if not is_artifact(path):
        record = read_record(path.resolve())
        return [record.training, *record.sources]
    source, account = _source_block(path)
    identity = str(source.get("identity") or path.name)
    own = Training(
        run=str(source.get("run") or path.name),
        identity=identity,
        utterance_passes=account.utterance_passes,
        optimizer_steps=account.optimizer_steps,
        device_seconds=account.device_seconds,
        search_evaluations=account.search_evaluations,
        flops=account.flops,
    )
    if not account.teacher_utterance_passes:
        return [own]
    # An artifact holds only the sum over the runs that its run needed.
    needed = Training(
        run=f"what {own.run} needed",
        identity=f"{identity}/sources",
        utterance_passes=account.teacher_utterance_passes,
        device_seconds=account.teacher_device_seconds,
        flops=account.teacher_flops,
    )
    return [own, needed]


def total_cost(trainings: Iterable[Training]) -> dict[str, Any]:
    """Total cost of trainings; each is counted once, even if it is named several times.

    Returns:
        ``trainings``, ``utterance_passes``, ``optimizer_steps``, ``device_seconds``,
        ``search_evaluations``, ``flops`` (None if one of them did not count any).
    """
    distinct = {training.identity: training for training in trainings}.values()
    return {
        "trainings": len(distinct),
        "utterance_passes": sum(training.utterance_passes for training in distinct),
        "optimizer_steps": sum(training.optimizer_steps for training in distinct),
        "device_seconds": sum(training.device_seconds for training in distinct),
        "search_evaluations": sum(training.search_evaluations for training in distinct),
        "flops": sum_known(training.flops for training in distinct),
    }
