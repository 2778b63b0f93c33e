"""Frames computed from audio when they are needed: nothing on disk, other noise in every epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from omnisparse.data.audio import read_samples
from omnisparse.data.augmentation import utterance_generator
from omnisparse.data.features import FeatureExtractor, FeatureKind
from omnisparse.data.frame_blocks import FrameSettings, compute_frames, require_rate, rounded
from omnisparse.data.room import RoomAugment
from omnisparse.data.validation import Progress, SkippedItem, require_mostly_good
from omnisparse.durable import replacing
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

FloatArray = npt.NDArray[np.float32]

STATISTICS_UTTERANCES = 1000
"""Utterances, drawn from all, over which live frames are normalised: an hour or more."""


class FrameSource(Protocol):
    """Where the frames of utterances come from: a store, or their audio."""

    skipped: tuple[SkippedItem, ...]
    """Utterances that have none."""

    def frames(self, utterance: str, epoch: int | None = None) -> FloatArray:
        """Frames of an utterance, [T, num_bins] float32; None for them as they are in no epoch."""

    def available(self, cuts: CutSet) -> CutSet:
        """The cuts that have frames."""

    def extractor(self, stack: int) -> FeatureExtractor:
        """An extractor with the statistics of these frames."""

    @property
    def key(self) -> str:
        """What the frames without augmentation depend on, hashed."""

    def recordings(self) -> str:
        """Hash of the recordings that augmentation draws from; empty if there are none."""


class LiveFeatures:
    """Unnormalised, unstacked log-mel frames of utterances, computed from audio each time.

    Without augmentation they are those of a `FeatureStore`, bit by bit.

    Args:
        cuts: Utterances, including copies at other speeds; each id once.
        mean: Mean of each bin, [num_bins].
        std: Standard deviation of each bin, [num_bins].
        num_bins: Mel bins.
        sampling_rate: Rate of the audio, in Hz.
        kind: Whose filterbanks.
        augment: Changes the samples of an epoch; None changes nothing.
        key: What frames and statistics depend on, hashed.
    """

    skipped: tuple[SkippedItem, ...] = ()

    def __init__(
        self,
        cuts: Sequence[Cut],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_bins: int = 80,
        sampling_rate: int = 16000,
        kind: FeatureKind = "kaldi",
        augment: RoomAugment | None = None,
        key: str = "",
    ) -> None:
        self._cuts = {cut.id: cut for cut in cuts}
        if len(self._cuts) != len(cuts):
            raise DataError("two utterances have the same name")
        self._extractor = FeatureExtractor(
            num_bins=num_bins, stack=1, sampling_rate=sampling_rate, kind=kind
        )
        self._mean, self._std = list(mean), list(std)
        self._augment = None if augment is None or augment.changes_nothing else augment
        self.key = key

    @classmethod
    def prepare(
        cls,
        cuts: CutSet,
        cache: Path,
        *,
        num_bins: int = 80,
        sampling_rate: int = 16000,
        kind: FeatureKind = "kaldi",
        augment: RoomAugment | None = None,
        num_jobs: int = 2,
        progress: Progress | None = None,
    ) -> LiveFeatures:
        """Open the frames of ``cuts``; compute statistics first if they are not known.

        Statistics are those of :data:`STATISTICS_UTTERANCES` utterances, or of all if there are no
        more, without augmentation: the same for the same names, from files and from shards.

        Args:
            cuts: As in the class.
            cache: Folder of statistics that are kept.
            num_bins: Mel bins.
            sampling_rate: Rate of the audio, in Hz.
            kind: Whose filterbanks.
            augment: As in the class.
            num_jobs: Number of processes.
            progress: Called with (utterances done, utterances in all) of those for statistics.

        Raises:
            DataError: If more than 5 % of them cannot be read, or writing fails.
        """
        listed = list(cuts)
        chosen = _evenly_drawn(listed)
        settings = FrameSettings(num_bins, sampling_rate, 0.0, (0.0, 0.0), 0, kind)
        key = settings.key(chosen)
        path = cache / f"statistics-{key}.json"
        known = _read_statistics(path, num_bins)
        if known is None:
            found = compute_frames(chosen, settings, num_jobs=num_jobs, progress=progress)
            require_mostly_good(found.skipped, len(chosen), "features")
            known = found.mean, found.std
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    partial.write_text(json.dumps({"mean": known[0], "std": known[1]}))
            except OSError as error:
                raise DataError(f"cannot write features to {cache}: {error}") from error
        return cls(
            listed, mean=known[0], std=known[1], num_bins=num_bins, sampling_rate=sampling_rate,
            kind=kind, augment=augment, key=f"live-{key}",
        )  # fmt: skip

    def frames(self, utterance: str, epoch: int | None = None) -> FloatArray:
        """Frames of an utterance: a new array, [T, num_bins] float32, log-mel.

        Args:
            utterance: Its name.
            epoch: Epoch whose augmentation it gets; None for none.

        Raises:
            KeyError: If there is no such utterance.
            DataError: If its audio cannot be read.
        """
        cut = self._cuts[utterance]
        require_rate(cut, self._extractor.sampling_rate)
        samples = read_samples(cut)
        if epoch is not None and self._augment is not None:
            samples = self._augment(samples, self._extractor.sampling_rate, utterance, epoch)
        return rounded(self._extractor.fbank(samples))

    def recordings(self) -> str:
        """Hash of the recordings that augmentation draws from; empty if there are none."""
        return "" if self._augment is None else self._augment.digest()

    def available(self, cuts: CutSet) -> CutSet:
        """The cuts themselves: nothing is known yet of any that cannot be read.

        Raises:
            ValueError: If a cut is not one of these utterances.
        """
        for cut in cuts:
            if cut.id not in self._cuts:
                raise ValueError(f"there are no live features for {cut.id}")
        return cuts

    def extractor(self, stack: int) -> FeatureExtractor:
        """An extractor that normalises by the statistics."""
        return FeatureExtractor(
            num_bins=self._extractor.num_bins,
            stack=stack,
            sampling_rate=self._extractor.sampling_rate,
            kind=self._extractor.kind,
            mean=self._mean,
            std=self._std,
        )


def _evenly_drawn(cuts: Sequence[Cut]) -> list[Cut]:
    """Utterances for statistics, in their order."""
    if len(cuts) <= STATISTICS_UTTERANCES:
        return list(cuts)
    places = utterance_generator("statistics", len(cuts)).permutation(len(cuts))
    return [cuts[place] for place in sorted(places[:STATISTICS_UTTERANCES].tolist())]


def _read_statistics(path: Path, num_bins: int) -> tuple[list[float], list[float]] | None:
    """Mean and deviation that are kept; None if they are missing or damaged."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        mean, std = ([float(value) for value in document[name]] for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (mean, std) if len(mean) == len(std) == num_bins and min(std) > 0 else None
