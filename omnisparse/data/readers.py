"""Features of training batches, made in advance by processes beside the training."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from omnisparse.data.augmentation import FloatArray, SpecAugment, utterance_generator
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.live_features import FrameSource
from omnisparse.errors import DataError, OmnisparseError

Task = tuple[int, tuple[str, ...]]
"""An epoch, and the utterances of one process's part of a batch."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes the features of training utterances: a pure function of (seed, epoch, utterance)."""

    source: FrameSource
    extractor: FeatureExtractor
    """Normalises and stacks frames."""
    spec_augment: SpecAugment | None
    """Masks normalised frames; None masks nothing."""
    unmasked_epochs: int
    """Epochs, at the start, without masking."""
    seed: int
    """Seed of the masks."""

    def features(self, utterance: str, epoch: int) -> FloatArray:
        """Features of an utterance, [T, F]."""
        frames = self.extractor.normalise(self.source.frames(utterance, epoch))
        if self.spec_augment is not None and epoch >= self.unmasked_epochs:
            generator = utterance_generator("spec-augment", self.seed, epoch, utterance)
            frames = self.spec_augment(frames, generator)
        return self.extractor.stack_frames(frames)

    def __getitem__(self, task: Task) -> list[FloatArray] | Exception:
        """Features of a task, or why there are none: torch would put a traceback around it."""
        epoch, utterances = task
        try:
            return [self.features(utterance, epoch) for utterance in utterances]
        except (OmnisparseError, ValueError, KeyError) as error:
            return error


def read_by_processes(
    reader: Reader,
    tasks: Iterable[Task],
    *,
    num_processes: int,
    prefetch: int = 2,
    timeout: float = 0.0,
) -> Generator[list[FloatArray], None, None]:
    """The features of tasks, in their order, by processes that work in advance.

    Args:
        reader: Makes them.
        tasks: Without end or not; taken in advance.
        num_processes: At least 1.
        prefetch: Tasks that each process has in advance, at least 1.
        timeout: Seconds to wait for the features of a task; 0 for ever.

    Raises:
        DataError: If a process dies, or takes too long.
    """
    import torch
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        reader,  # type: ignore[arg-type]  # a map, whose keys are tasks
        sampler=tasks,
        batch_size=None,
        num_workers=num_processes,
        prefetch_factor=prefetch,
        collate_fn=_unchanged,  # arrays through a pipe: shared memory is small in containers
        worker_init_fn=_start_reader,
        timeout=timeout,
        generator=torch.Generator(),  # the training's own is not touched
    )
    stream = iter(loader)
    try:
        while True:
            try:
                features = next(stream)
            except StopIteration:
                return
            except RuntimeError as error:
                raise DataError(_why(error, num_processes, timeout)) from error
            if isinstance(features, Exception):
                raise features
            yield features
    finally:
        stream._shutdown_workers()


def _unchanged(features: Any) -> Any:
    return features


def _start_reader(number: int) -> None:
    # What stops a training is sent to all its processes; those that read must go on until it has
    # saved its place. They end with it.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _why(error: RuntimeError, num_processes: int, timeout: float) -> str:
    text = " ".join(str(error).split())
    if "timed out" in text:
        return f"no training data for {timeout:g} s: the processes that read it do not answer"
    if "exited unexpectedly" in text or "is killed by signal" in text:
        return (
            f"a process that reads training data died (out of memory? data.workers is "
            f"{num_processes}): {text[:200]}"
        )
    return f"training data cannot be read: {text[:200]}"
