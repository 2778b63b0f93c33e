"""Filterbanks computed once and kept on disk: files of float16 frames and one JSON index.

The files are memory-mapped, so that hundreds of hours at three speeds need little memory, and any
number of processes share one copy; none is larger than :data:`MAX_FILE_BYTES` and one utterance. A
hash of everything that a store depends on is its name.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnisparse.data.atomic_folder import atomic_folder
from omnisparse.data.features import FeatureExtractor, FeatureKind, num_frames
from omnisparse.data.frame_blocks import FORMAT_VERSION, FrameSettings, Place, compute_frames
from omnisparse.data.validation import Progress, SkippedItem, require_mostly_good
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

FloatArray = npt.NDArray[np.float32]

MAX_FILE_BYTES = 1 << 30
"""Size of a file of frames from which on the next utterance goes into another: 18 hours."""

_FRAMES_FILE = "features.f16"
_INDEX_FILE = "index.json"


class FeatureStore:
    """Unnormalised, unstacked log-mel frames of a set of utterances, by utterance id.

    Safe to open in many processes at once, and to send to one.

    Args:
        folder: Folder made by `build`.
        in_memory: Read all frames into memory instead of mapping the file.

    Raises:
        DataError: If the folder holds no complete store.
    """

    def __init__(self, folder: Path, *, in_memory: bool = False) -> None:
        index = _read_index(folder)
        if index is None:
            raise DataError(f"{folder} holds no complete feature store")
        self.folder = folder
        self._in_memory = in_memory
        self.num_bins = int(index["num_bins"])
        self.sampling_rate = int(index["sampling_rate"])
        self.kind: FeatureKind = index.get("kind", "kaldi")
        self.mean: list[float] = index["mean"]
        self.std: list[float] = index["std"]
        self.skipped = tuple(SkippedItem(**item) for item in index["skipped"])
        self._places: dict[str, list[int]] = index["utterances"]
        self._starts: list[int] = index["starts"]
        self._files = [
            _open_frames(folder / name, length, self.num_bins, in_memory=in_memory)
            for name, length in _files_of(self._starts, int(index["num_frames"]))
        ]

    @classmethod
    def build(
        cls,
        cuts: CutSet,
        cache: Path,
        *,
        num_bins: int = 80,
        sampling_rate: int = 16000,
        kind: FeatureKind = "kaldi",
        noise_probability: float = 0.0,
        noise_snr_db: tuple[float, float] = (10.0, 30.0),
        seed: int = 0,
        num_jobs: int = 2,
        in_memory: bool = False,
        progress: Progress | None = None,
    ) -> FeatureStore:
        """Open the store of ``cuts``; compute it first if it is missing or incomplete.

        Args:
            cuts: Utterances, including copies at other speeds; each id once.
            cache: Folder of all stores; the store gets a folder of its own in it.
            num_bins: Mel bins.
            sampling_rate: Rate of the audio, in Hz.
            kind: Whose filterbanks.
            noise_probability: Share of the utterances that get noise, in [0, 1].
            noise_snr_db: Range of their signal-to-noise ratio, in dB.
            seed: Seed of the noise; the noise of an utterance depends only on this and its id.
            num_jobs: Number of processes.
            in_memory: As in the class.
            progress: Called with (utterances done, utterances in all).

        Returns:
            The store. Utterances that could not be read are in its `skipped`.

        Raises:
            DataError: If more than 5 % of the utterances cannot be read, or writing fails.
        """
        # Without noise, frames and store are the same for every seed.
        noise_seed = seed if noise_probability > 0 else 0
        settings = FrameSettings(
            num_bins, sampling_rate, noise_probability, noise_snr_db, noise_seed, kind
        )
        listed = list(cuts)
        folder = cache / settings.key(listed)
        if _read_index(folder) is None:
            try:
                with atomic_folder(folder) as temporary:
                    _compute(listed, temporary, settings, num_jobs, progress)
            except OSError as error:
                raise DataError(f"cannot write features to {cache}: {error}") from error
        return cls(folder, in_memory=in_memory)

    def frames(self, utterance: str, epoch: int | None = None) -> FloatArray:
        """Frames of an utterance: a new array, [T, num_bins] float32, log-mel.

        Args:
            utterance: Its name.
            epoch: Changes nothing: what is stored is the same in every epoch.

        Raises:
            KeyError: If the store does not hold it.
        """
        first, count = self._places[utterance]
        number = bisect_right(self._starts, first) - 1
        first -= self._starts[number]
        return self._files[number][first : first + count].astype(np.float32)

    def recordings(self) -> str:
        """Empty: the noise in a store is made, not recorded."""
        return ""

    @property
    def key(self) -> str:
        """What the frames depend on, hashed."""
        return self.folder.name

    def num_frames(self, utterance: str) -> int:
        """Number of 10 ms frames of an utterance.

        Raises:
            KeyError: If the store does not hold it.
        """
        return self._places[utterance][1]

    def available(self, cuts: CutSet) -> CutSet:
        """The cuts whose features the store holds, without the skipped ones.

        Raises:
            ValueError: If a cut was never given to the store.
        """
        from lhotse import CutSet

        skipped = {item.id for item in self.skipped}
        kept = []
        for cut in cuts:
            if cut.id in self._places:
                kept.append(cut)
            elif cut.id not in skipped:
                raise ValueError(f"the feature store {self.folder} was not built for {cut.id}")
        return CutSet.from_cuts(kept)

    def extractor(self, stack: int) -> FeatureExtractor:
        """An extractor that normalises by the mean and deviation of this store."""
        return FeatureExtractor(
            num_bins=self.num_bins,
            stack=stack,
            sampling_rate=self.sampling_rate,
            kind=self.kind,
            mean=self.mean,
            std=self.std,
        )

    def __contains__(self, utterance: object) -> bool:
        return utterance in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self._in_memory)


def _reopen(folder: Path, in_memory: bool) -> FeatureStore:
    return FeatureStore(folder, in_memory=in_memory)


def _files_of(starts: Sequence[int], num_frames: int) -> list[tuple[str, int]]:
    """Names and lengths in frames of the files of a store, from their first frames."""
    lengths = np.diff([*starts, num_frames]).tolist()
    if len(starts) == 1:
        return [(_FRAMES_FILE, lengths[0])]
    return [(f"features.{number:05d}.f16", length) for number, length in enumerate(lengths)]


def _open_frames(
    path: Path, length: int, num_bins: int, *, in_memory: bool
) -> npt.NDArray[np.float16]:
    if in_memory:
        return np.fromfile(path, dtype=np.float16).reshape(length, num_bins)
    return np.memmap(path, dtype=np.float16, mode="r", shape=(length, num_bins))


def _read_index(folder: Path) -> dict[str, Any] | None:
    """Index of a complete store; None if the store is missing, incomplete or damaged."""
    try:
        index: dict[str, Any] = json.loads((folder / _INDEX_FILE).read_text(encoding="utf-8"))
        index.setdefault("starts", [0])  # a store of before has one file
        files = _files_of(index["starts"], int(index["num_frames"]))
        whole = index["format_version"] == FORMAT_VERSION and all(
            (folder / name).stat().st_size == 2 * length * int(index["num_bins"])
            for name, length in files
        )
        whole = whole and {"mean", "std", "skipped", "utterances", "sampling_rate"} <= set(index)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


def _compute(
    cuts: Sequence[Cut],
    folder: Path,
    settings: FrameSettings,
    num_jobs: int,
    progress: Progress | None,
) -> None:
    """Fill ``folder`` with frames and index. The result does not depend on ``num_jobs``."""
    most = MAX_FILE_BYTES // (2 * settings.num_bins)
    placed: dict[str, list[int]] = {}
    starts, total = [0], 0
    for cut in cuts:
        if cut.id in placed:
            raise DataError(f"two utterances are named {cut.id}")
        count = num_frames(cut.num_samples, cut.sampling_rate, settings.kind)
        if total > starts[-1] and total + count - starts[-1] > most:
            starts.append(total)
        placed[cut.id] = [total, count]
        total += count
    files = _files_of(starts, total)
    for name, length in files:
        with (folder / name).open("wb") as file:
            file.truncate(2 * length * settings.num_bins)
    places: list[Place] = []
    for first, _ in placed.values():
        number = bisect_right(starts, first) - 1
        places.append((folder / files[number][0], first - starts[number]))
    found = compute_frames(cuts, settings, places=places, num_jobs=num_jobs, progress=progress)
    require_mostly_good(found.skipped, len(cuts), "features")
    index = {
        "format_version": FORMAT_VERSION,
        **asdict(settings),
        "num_frames": total,
        "starts": starts,
        "mean": found.mean,
        "std": found.std,
        "skipped": [asdict(item) for item in found.skipped],
        "utterances": {name: place for name, place in placed.items() if name in found.written},
    }
    (folder / _INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
