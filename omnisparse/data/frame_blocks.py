"""Frames of many utterances in blocks, by several processes, and their statistics."""

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

from omnisparse.data.audio import read_samples
from omnisparse.data.augmentation import add_noise, utterance_generator
from omnisparse.data.features import FeatureExtractor, FeatureKind
from omnisparse.data.heap import keep_freed_memory
from omnisparse.data.identity import sound_rows
from omnisparse.data.validation import Progress, SkippedItem
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse.cut import Cut

FloatArray = npt.NDArray[np.float32]

FORMAT_VERSION = 3  # 2 hashed names of files, 1 used only the first channel
# Utterances per task of a process: few enough for equal load, many enough for few messages.
_BLOCK = 64
# A bin that never changes must not cause a division by zero.
_SMALLEST_STD = 1e-3


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """Settings on which stored frames depend, besides the cuts."""

    num_bins: int
    sampling_rate: int
    noise_probability: float
    noise_snr_db: tuple[float, float]
    seed: int
    kind: FeatureKind = "kaldi"

    def key(self, cuts: Sequence[Cut]) -> str:
        """Name of frames: a hash of the audio content and of the settings."""
        settings = asdict(self)
        if self.kind == "kaldi":
            del settings["kind"]  # what is stored already keeps its name
        digest = hashlib.sha256(json.dumps([FORMAT_VERSION, settings]).encode())
        for cut, row in zip(cuts, sound_rows(cuts), strict=True):
            digest.update(json.dumps([cut.id, *row], default=str).encode())
        return digest.hexdigest()[:24]


@dataclass(slots=True)
class _BlockResult:
    """Result of one block of utterances, without the frames themselves."""

    written: list[str]
    skipped: list[SkippedItem]
    total: npt.NDArray[np.float64]
    total_of_squares: npt.NDArray[np.float64]
    num_frames: int


@dataclass(frozen=True, slots=True)
class Computed:
    """What computing the frames of some utterances gave, besides the frames."""

    written: frozenset[str]
    """Utterances that could be read."""
    skipped: list[SkippedItem]
    """The others."""
    mean: list[float]
    """Of each bin over all frames."""
    std: list[float]
    """Standard deviation of each bin, above 0."""


Place = tuple[Path, int]
"""A file of float16 frames, and the first frame of an utterance in it."""


def compute_frames(
    cuts: Sequence[Cut],
    settings: FrameSettings,
    *,
    places: Sequence[Place] | None = None,
    num_jobs: int = 1,
    progress: Progress | None = None,
) -> Computed:
    """Compute the frames of utterances; the result does not depend on ``num_jobs``.

    Args:
        cuts: Utterances.
        settings: How.
        places: Where the frames of each are written, into files that are large enough; None only
            for the statistics.
        num_jobs: Number of processes.
        progress: Called with (utterances done, utterances in all).

    Raises:
        DataError: If a process died, or no utterance could be read.
    """
    placed = list(zip(cuts, [None] * len(cuts) if places is None else places, strict=True))
    blocks = [(settings, placed[first : first + _BLOCK]) for first in range(0, len(cuts), _BLOCK)]
    results = []
    done = 0
    try:
        with _worker_map(min(num_jobs, len(blocks))) as run:
            for block, result in zip(blocks, run(_compute_block, blocks), strict=True):
                results.append(result)
                done += len(block[1])
                if progress is not None:
                    progress(done, len(cuts))
    except BrokenProcessPool as error:
        raise DataError("a process computing features died (out of memory?)") from error
    frames_seen = max(1, sum(result.num_frames for result in results))
    mean = sum(result.total for result in results) / frames_seen
    variance = sum(result.total_of_squares for result in results) / frames_seen - mean**2
    std = np.maximum(np.sqrt(np.maximum(variance, 0.0)), _SMALLEST_STD)
    return Computed(
        written=frozenset(name for result in results for name in result.written),
        skipped=[item for result in results for item in result.skipped],
        mean=[round(float(value), 6) for value in mean],
        std=[round(float(value), 6) for value in std],
    )


def rounded(frames: FloatArray) -> FloatArray:
    """Frames as the store keeps them: float32 of float16."""
    return frames.astype(np.float16).astype(np.float32)


def require_rate(cut: Cut, sampling_rate: int) -> None:
    """Refuse a cut of another rate.

    Raises:
        DataError: Naming it.
    """
    if cut.sampling_rate != sampling_rate:
        raise DataError(f"{cut.id}: {cut.sampling_rate} Hz instead of {sampling_rate} Hz")


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
    keep_freed_memory()
    # One thread per process: processes share the cores, and a forked thread pool would hang.
    torch.set_num_threads(1)


def _compute_block(
    block: tuple[FrameSettings, list[tuple[Cut, Place | None]]],
) -> _BlockResult:
    """Compute some utterances, and write their frames to their places."""
    settings, placed = block
    extractor = FeatureExtractor(
        num_bins=settings.num_bins,
        stack=1,
        sampling_rate=settings.sampling_rate,
        kind=settings.kind,
    )
    zeros = np.zeros(settings.num_bins)
    result = _BlockResult([], [], zeros.copy(), zeros.copy(), 0)
    for cut, place in placed:
        try:
            frames = _compute_frames(cut, extractor, settings)
        except (DataError, ValueError) as error:
            result.skipped.append(SkippedItem(cut.id, "unreadable", str(error)))
            continue
        if place is not None:
            with place[0].open("r+b") as file:
                file.seek(2 * place[1] * settings.num_bins)
                file.write(frames.astype(np.float16).tobytes())
        result.written.append(cut.id)
        result.total += frames.sum(axis=0, dtype=np.float64)
        result.total_of_squares += np.square(frames, dtype=np.float64).sum(axis=0)
        result.num_frames += len(frames)
    return result


def _compute_frames(cut: Cut, extractor: FeatureExtractor, settings: FrameSettings) -> FloatArray:
    require_rate(cut, settings.sampling_rate)
    samples = read_samples(cut)
    if settings.noise_probability > 0:
        generator = utterance_generator("noise", settings.seed, cut.id)
        if generator.random() < settings.noise_probability:
            samples = add_noise(samples, generator.uniform(*settings.noise_snr_db), generator)
    return extractor.fbank(samples)
