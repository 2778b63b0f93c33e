"""Filterbanks computed once and kept on disk: one file of float16 frames and one JSON index.

The file is memory-mapped, so that tens of hours at three speeds need little memory, and any number
of processes share one copy. A hash of everything that a store depends on is its name.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnisparse.data.atomic_folder import atomic_folder
from omnisparse.data.audio import read_samples
from omnisparse.data.augmentation import add_noise, utterance_generator
from omnisparse.data.features import FeatureExtractor, num_frames
from omnisparse.data.identity import sound_rows
from omnisparse.data.validation import Progress, SkippedItem, require_mostly_good
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

FloatArray = npt.NDArray[np.float32]

_FORMAT_VERSION = 3  # 2 hashed names of files, 1 used only the first channel
_FRAMES_FILE = "features.f16"
_INDEX_FILE = "index.json"
# Utterances per task of a process: few enough for equal load, many enough for few messages.
_BLOCK = 64
# A bin that never changes must not cause a division by zero.
_SMALLEST_STD = 1e-3


@dataclass(frozen=True, slots=True)
class _Settings:
    """Settings on which the content of a store depends, besides the cuts."""

    num_bins: int
    sampling_rate: int
    noise_probability: float
    noise_snr_db: tuple[float, float]
    seed: int


@dataclass(slots=True)
class _BlockResult:
    """Result of one block of utterances, without the frames themselves."""

    written: list[str]
    skipped: list[SkippedItem]
    total: npt.NDArray[np.float64]
    total_of_squares: npt.NDArray[np.float64]
    num_frames: int


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
        self.mean: list[float] = index["mean"]
        self.std: list[float] = index["std"]
        self.skipped = tuple(SkippedItem(**item) for item in index["skipped"])
        self._places: dict[str, list[int]] = index["utterances"]
        shape = (int(index["num_frames"]), self.num_bins)
        path = folder / _FRAMES_FILE
        self._frames: npt.NDArray[np.float16]
        if in_memory:
            self._frames = np.fromfile(path, dtype=np.float16).reshape(shape)
        else:
            self._frames = np.memmap(path, dtype=np.float16, mode="r", shape=shape)

    @classmethod
    def build(
        cls,
        cuts: CutSet,
        cache: Path,
        *,
        num_bins: int = 80,
        sampling_rate: int = 16000,
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
        settings = _Settings(num_bins, sampling_rate, noise_probability, noise_snr_db, noise_seed)
        listed = list(cuts)
        folder = cache / store_key(listed, settings)
        if _read_index(folder) is None:
            try:
                with atomic_folder(folder) as temporary:
                    _compute(listed, temporary, settings, num_jobs, progress)
            except OSError as error:
                raise DataError(f"cannot write features to {cache}: {error}") from error
            except BrokenProcessPool as error:
                raise DataError("a process computing features died (out of memory?)") from error
        return cls(folder, in_memory=in_memory)

    def frames(self, utterance: str) -> FloatArray:
        """Frames of an utterance: a new array, [T, num_bins] float32, log-mel.

        Raises:
            KeyError: If the store does not hold it.
        """
        first, count = self._places[utterance]
        return self._frames[first : first + count].astype(np.float32)

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


def store_key(cuts: Sequence[Cut], settings: _Settings) -> str:
    """Name of a store: a hash of the audio content and of the settings."""
    digest = hashlib.sha256(json.dumps([_FORMAT_VERSION, asdict(settings)]).encode())
    for cut, row in zip(cuts, sound_rows(cuts), strict=True):
        digest.update(json.dumps([cut.id, *row], default=str).encode())
    return digest.hexdigest()[:24]


def _read_index(folder: Path) -> dict[str, Any] | None:
    """Index of a complete store; None if the store is missing, incomplete or damaged."""
    try:
        index: dict[str, Any] = json.loads((folder / _INDEX_FILE).read_text(encoding="utf-8"))
        size = (folder / _FRAMES_FILE).stat().st_size
        expected = 2 * int(index["num_frames"]) * int(index["num_bins"])
        whole = index["format_version"] == _FORMAT_VERSION and size == expected
        whole = whole and {"mean", "std", "skipped", "utterances", "sampling_rate"} <= set(index)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


def _compute(
    cuts: Sequence[Cut],
    folder: Path,
    settings: _Settings,
    num_jobs: int,
    progress: Progress | None,
) -> None:
    """Fill ``folder`` with frames and index. The result does not depend on ``num_jobs``."""
    places: dict[str, list[int]] = {}
    total = 0
    for cut in cuts:
        if cut.id in places:
            raise DataError(f"two utterances are named {cut.id}")
        count = num_frames(cut.num_samples, cut.sampling_rate)
        places[cut.id] = [total, count]
        total += count
    path = folder / _FRAMES_FILE
    with path.open("wb") as file:
        file.truncate(2 * total * settings.num_bins)
    blocks = [
        (path, settings, [(cut, places[cut.id][0]) for cut in cuts[first : first + _BLOCK]])
        for first in range(0, len(cuts), _BLOCK)
    ]
    results = []
    done = 0
    with _worker_map(min(num_jobs, len(blocks))) as run:
        for block, result in zip(blocks, run(_compute_block, blocks), strict=True):
            results.append(result)
            done += len(block[2])
            if progress is not None:
                progress(done, len(cuts))
    skipped = [item for result in results for item in result.skipped]
    require_mostly_good(skipped, len(cuts), "features")
    written = {name for result in results for name in result.written}
    frames_seen = sum(result.num_frames for result in results)
    mean = sum(result.total for result in results) / frames_seen
    variance = sum(result.total_of_squares for result in results) / frames_seen - mean**2
    std = np.maximum(np.sqrt(np.maximum(variance, 0.0)), _SMALLEST_STD)
    index = {
        "format_version": _FORMAT_VERSION,
        **asdict(settings),
        "num_frames": total,
        "mean": [round(float(value), 6) for value in mean],
        "std": [round(float(value), 6) for value in std],
        "skipped": [asdict(item) for item in skipped],
        "utterances": {name: place for name, place in places.items() if name in written},
    }
    (folder / _INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


@contextmanager
def _worker_map(num_jobs: int) -> Iterator[Any]:
    """A `map` over processes, in order; the built-in `map` for a single job."""
    if num_jobs <= 1:
        yield map
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(num_jobs, mp_context=context, initializer=_start_worker) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    # One thread per process: processes share the cores, and a forked thread pool would hang.
    torch.set_num_threads(1)


def _compute_block(block: tuple[Path, _Settings, list[tuple[Cut, int]]]) -> _BlockResult:
    """Write the frames of some utterances to their places in the file."""
    path, settings, placed = block
    extractor = FeatureExtractor(
        num_bins=settings.num_bins, stack=1, sampling_rate=settings.sampling_rate
    )
    zeros = np.zeros(settings.num_bins)
    result = _BlockResult([], [], zeros.copy(), zeros.copy(), 0)
    with path.open("r+b") as file:
        for cut, first in placed:
            try:
                frames = _compute_frames(cut, extractor, settings)
            except (DataError, ValueError) as error:
                result.skipped.append(SkippedItem(cut.id, "unreadable", str(error)))
                continue
            file.seek(2 * first * settings.num_bins)
            file.write(frames.astype(np.float16).tobytes())
            result.written.append(cut.id)
            result.total += frames.sum(axis=0, dtype=np.float64)
            result.total_of_squares += np.square(frames, dtype=np.float64).sum(axis=0)
            result.num_frames += len(frames)
    return result


def _compute_frames(cut: Cut, extractor: FeatureExtractor, settings: _Settings) -> FloatArray:
    if cut.sampling_rate != settings.sampling_rate:
        raise DataError(f"{cut.id}: {cut.sampling_rate} Hz instead of {settings.sampling_rate} Hz")
    samples = read_samples(cut)
    if settings.noise_probability > 0:
        generator = utterance_generator("noise", settings.seed, cut.id)
        if generator.random() < settings.noise_probability:
            samples = add_noise(samples, generator.uniform(*settings.noise_snr_db), generator)
    return extractor.fbank(samples)
