"""The same batches in the same order, for any number of processes or restarts.

lhotse's bucketing sampler divides every epoch into global batches, and process `r` takes its part
of each. So a position in a run is two numbers: the epoch, and the number of batches done in it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omnisparse.data.audio import FloatArray
from omnisparse.data.augmentation import AugmentationConfig, SpecAugment, utterance_generator
from omnisparse.data.batch import Batch, collate, process_slice, text_of
from omnisparse.data.collector import collector_paused
from omnisparse.data.features import FeatureConfig, FeatureExtractor
from omnisparse.data.live_features import FrameSource
from omnisparse.data.readers import Reader, read_by_processes
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import (
    DataError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    check_ranges,
)

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

__all__ = [
    "Batch",
    "DataConfig",
    "TrainingBatches",
    "collate",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Batches, features and word pieces of the training data."""

    batch_seconds: float = 300.0
    """Audio of one batch over all processes, padding included, in seconds."""
    micro_batch_seconds: PositiveFloat | None = None
    """Most audio that a process computes on at once, padding included, in seconds: its part of a
    batch is cut into so many parts, for the same gradient. None computes it at once."""
    max_batch_size: PositiveInt = 64
    """Most utterances of one batch over all processes."""
    num_buckets: PositiveInt = 20
    """Classes of duration from which batches are drawn; more classes give less padding and less
    shuffling."""
    short_first_epochs: NonNegativeInt = 0
    """Epochs, at the start, in which short batches come first: attention learns to align short
    utterances much earlier than long ones."""
    min_seconds: NonNegativeFloat = 0.1
    """Shorter utterances are left out of training, in seconds."""
    max_seconds: float = 30.0
    """Longer utterances are left out of training, in seconds."""
    vocab_size: Annotated[int, Range(minimum=4)] = 500
    """Number of word pieces with the three special ones; if ``tokenizer`` is given, its number."""
    tokenizer: str | None = None
    """Run, artifact or ``tokenizer.model`` whose word pieces are used: those of the net that the
    training starts from (``init``); null learns them from the training transcripts."""
    statistics: Literal["auto", "init", "own"] = "auto"
    """Mean and deviation that normalise features: ``init``, of the net that training starts from,
    which its weights are used to; ``own``, of this run's training data; ``auto``: those of ``init``
    where there is one."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """Shape of the features."""
    frames: Literal["store", "live"] = "store"
    """Where frames come from: ``store`` computes them once and keeps them on disk, 58 GB for 1,000
    hours; ``live`` computes them from audio each time, with other noise and rooms in every
    epoch."""
    workers: NonNegativeInt = 0
    """Processes that read and compute features in advance, of each process of the training; 0 for
    a thread of its own."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Augmentation of the training data."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a field is outside its range.
        """
        check_ranges(self)
        if not self.min_seconds < self.max_seconds:
            raise ValueError(
                f"min_seconds is {self.min_seconds}; it must be below max_seconds, "
                f"{self.max_seconds}"
            )
        if not self.batch_seconds >= self.max_seconds:
            raise ValueError(
                f"batch_seconds is {self.batch_seconds}; it must be at least max_seconds, "
                f"{self.max_seconds}"
            )
        for name in ("noise", "rooms"):
            if self.frames != "live" and getattr(self.augmentation, name) is not None:
                raise ValueError(f"augmentation.{name} needs frames: live, got {self.frames!r}")


class TrainingBatches:
    """The endless sequence of training batches; its position can be saved.

    The data is a pure function of (seed, epoch, utterance), the order of (seed, epoch).

    Args:
        cuts: Training utterances; those that ``features`` had to skip are left out.
        features: Frames of all utterances.
        extractor: Normalises and stacks them.
        tokenizer: Encodes the transcripts.
        batch_seconds: Audio of one global batch, padding included, in seconds.
        max_batch_size: Most utterances of one global batch.
        num_buckets: Classes of duration; a small data set uses fewer.
        short_first_epochs: Epochs, at the start, in which short batches come first.
        spec_augment: Masks the normalised frames; None masks nothing.
        unmasked_epochs: Epochs, at the start, without masking.
        seed: Seed of order and masks.
        rank: Number of this process.
        world_size: Number of processes.
        prefetch: Batches that a thread, or each of ``workers``, makes in advance; 0 makes each when
            it is needed, without workers.
        workers: Processes that make features in advance; 0 for a thread.
        timeout: Longest wait for a batch, in seconds; 0 for ever.

    Raises:
        ValueError: If there are no cuts, an utterance is longer than ``batch_seconds``, or
            ``rank`` and ``world_size`` do not fit.
    """

    def __init__(
        self,
        cuts: CutSet,
        *,
        features: FrameSource,
        extractor: FeatureExtractor,
        tokenizer: Tokenizer,
        batch_seconds: float,
        max_batch_size: int,
        num_buckets: int = 20,
        short_first_epochs: int = 0,
        spec_augment: SpecAugment | None = None,
        unmasked_epochs: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        workers: int = 0,
        timeout: float = 0.0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size={world_size}), got {rank}")
        self._cuts = features.available(cuts)
        if len(self._cuts) == 0:
            raise ValueError("cuts must hold at least one utterance that can be trained on")
        longest = max(self._cuts, key=lambda cut: cut.duration)
        if longest.duration > batch_seconds:
            raise ValueError(
                f"batch_seconds must be at least {longest.duration:.2f}, the length of "
                f"{longest.id}, got {batch_seconds}"
            )
        self._reader = Reader(features, extractor, spec_augment, unmasked_epochs, seed)
        self._short_first_epochs = short_first_epochs
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._prefetch = prefetch
        self._workers = workers
        self._timeout = timeout
        self._tokenizer = tokenizer
        self._sampler = _bucketing_sampler(
            self._cuts, batch_seconds, max_batch_size, num_buckets, seed
        )
        self._orders: dict[int, list[list[Cut]]] = {}
        self._epoch = 0
        self._batches = 0
        self.seconds_per_epoch = float(sum(cut.duration for cut in self._cuts))

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self._epoch

    @property
    def first_shuffled_epoch(self) -> int:
        """The first epoch in which short batches do not come first."""
        return self._short_first_epochs

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of the present epoch; it may differ slightly between epochs."""
        return len(self._epoch_order(self._epoch))

    @property
    def num_utterances(self) -> int:
        """Utterances of an epoch."""
        return len(self._cuts)

    def state_dict(self) -> dict[str, int]:
        """Position after the last batch that was handed out, the same in every process."""
        return {"epoch": self._epoch, "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a saved position, also one saved with another number of processes.

        Raises:
            ValueError: If this data has no such position.
        """
        epoch, batches = int(state["epoch"]), int(state["batches"])
        if epoch < 0 or not 0 <= batches < len(self._epoch_order(max(epoch, 0))):
            raise ValueError(
                f"epoch={epoch}, batches={batches} is not a position in this data: an epoch has "
                f"{self.steps_per_epoch} batches"
            )
        self._epoch, self._batches = epoch, batches

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this process from the present position, epoch after epoch, without end."""
        if self._prefetch == 0 and self._workers == 0:
            while True:
                batch = self.batch(self._epoch, self._batches)
                self._advance()
                yield batch
        reading = self._by_processes() if self._workers else self._by_thread()
        try:
            for batch in reading:
                self._advance()
                yield batch
        finally:
            reading.close()

    def _by_thread(self) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        hangs = False
        try:
            ahead = self._positions_ahead()
            pending = [pool.submit(self._assemble, next(ahead)) for _ in range(self._prefetch)]
            while True:
                try:
                    batch = pending.pop(0).result(timeout=self._timeout or None)
                except TimeoutError as error:
                    hangs = True
                    raise DataError(
                        f"no training data for {self._timeout:g} s: reading it hangs"
                    ) from error
                pending.append(pool.submit(self._assemble, next(ahead)))
                yield batch
        finally:
            pool.shutdown(wait=not hangs, cancel_futures=True)  # no thread is left behind

    def _by_processes(self) -> Generator[Batch, None, None]:
        ahead, again = itertools.tee(self._positions_ahead())
        stream = read_by_processes(
            self._reader,
            ((epoch, tuple(cut.id for cut in self._part(cuts)[0])) for epoch, cuts in ahead),
            num_processes=self._workers,
            prefetch=max(1, self._prefetch),
            timeout=self._timeout,
        )
        try:
            for (_, cuts), features in zip(again, stream, strict=False):
                yield self._collate(cuts, features)
        finally:
            stream.close()

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch of this process at any position; the position of the iterator does not change."""
        return self._assemble((epoch, self._epoch_order(epoch)[index]))

    def largest(self) -> list[Batch]:
        """The batches of the present epoch that need the most memory, this process's parts.

        Returns:
            The one with the most audio, padding included; and that with the most pairs of audio and
            tokens, as in a transducer's lattice, if it is another.
        """

        def audio(cuts: list[Cut]) -> float:
            return len(cuts) * float(max(cut.duration for cut in cuts))

        def lattice(cuts: list[Cut]) -> float:
            return audio(cuts) * max(len(tokenizer.encode(text_of(cut))) for cut in cuts)

        tokenizer, order = self._tokenizer, self._epoch_order(self._epoch)
        numbers = {
            max(range(len(order)), key=lambda n: size(order[n])) for size in (audio, lattice)
        }
        return [self.batch(self._epoch, number) for number in sorted(numbers)]

    def _advance(self) -> None:
        self._batches += 1
        if self._batches == self.steps_per_epoch:
            self._epoch, self._batches = self._epoch + 1, 0

    def _positions_ahead(self) -> Iterator[tuple[int, list[Cut]]]:
        epoch, first = self._epoch, self._batches
        order = self._epoch_order(epoch)
        while True:
            for index in range(first, len(order)):
                yield epoch, order[index]
            epoch, first = epoch + 1, 0
            order = self._epoch_order(epoch)

    def _epoch_order(self, epoch: int) -> list[list[Cut]]:
        """Global batches of an epoch; the last two epochs are stored, for prefetched batches."""
        if epoch not in self._orders:
            self._orders = dict(list(self._orders.items())[-1:])
            self._orders[epoch] = self._lay_out(epoch)
        return self._orders[epoch]

    def _lay_out(self, epoch: int) -> list[list[Cut]]:
        """Global batches of an epoch."""
        generator = utterance_generator("order", self._seed, epoch)
        # lhotse shuffles by (its seed + epoch): neighbouring seeds would have the same orders.
        self._sampler.set_epoch(int(generator.integers(1 << 62)))
        with collector_paused():
            batches = [list(batch) for batch in self._sampler]
        if epoch < self._short_first_epochs:
            # Amodei et al. 2016 (arXiv:1512.02595), section 3.2, "SortaGrad".
            batches.sort(key=lambda batch: max(cut.duration for cut in batch))
        return batches

    def _part(self, cuts: list[Cut]) -> tuple[list[Cut], list[int]]:
        """Utterances of this process, of those of a global batch, and their places in it."""
        places = process_slice(len(cuts), self._rank, self._world_size)
        return [cuts[place] for place in places], places

    def _assemble(self, position: tuple[int, list[Cut]]) -> Batch:
        epoch, cuts = position
        features = [self._reader.features(cut.id, epoch) for cut in self._part(cuts)[0]]
        return self._collate(cuts, features)

    def _collate(self, cuts: list[Cut], features: Sequence[FloatArray]) -> Batch:
        chosen, places = self._part(cuts)
        tokens = [self._tokenizer.encode(text_of(cut)) for cut in chosen]
        return collate(chosen, features, tokens, places, is_copy=self._rank >= len(cuts))


def _bucketing_sampler(
    cuts: CutSet, batch_seconds: float, max_batch_size: int, num_buckets: int, seed: int
) -> Any:
    from lhotse import CutSet
    from lhotse.dataset import BucketingSampler, SimpleCutSampler

    # Every bucket ends with a batch that is not full, so a bucket should have several batches.
    seconds = sum(cut.duration for cut in cuts)
    enough = min(int(seconds / (3 * batch_seconds)), len(cuts) // (3 * max_batch_size) or 1)
    # Copies, because lhotse writes the rank into every cut that it returns.
    copies = CutSet.from_cuts(copy.copy(cut) for cut in cuts)
    fields: dict[str, Any] = {
        "max_duration": batch_seconds,
        "max_cuts": max_batch_size,
        "shuffle": True,
        "drop_last": False,
        # The global order is the same in every process; each takes its part in `_assemble`.
        "world_size": 1,
        "rank": 0,
    }
    for buckets in range(min(num_buckets, enough), 1, -1):
        try:
            return BucketingSampler(copies, num_buckets=buckets, seed=seed, **fields)
        except KeyError:
            # If rounding overfills the middle bucket, lhotse searches for one after the last.
            continue
    # Equal to a single bucket of lhotse, in the same order, without the search for buckets.
    return SimpleCutSampler(copies.sort_by_duration(ascending=True), seed=0, **fields)
