"""Reads recordings, whole or piece by piece, and refuses what nothing can be recognised in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from omnisparse.data.decoding import BadAudioError, decode, read_header
from omnisparse.errors import DataError

FloatArray = npt.NDArray[np.float32]

BLOCK_SECONDS = 30.0
"""Audio decoded at once where a whole recording is wanted."""

MIN_SECONDS = 0.01
"""One frame shift: what is shorter has no features."""


def read_audio(path: Path) -> tuple[FloatArray, int]:
    """Reads a sound file.

    Returns:
        Samples [N] float32 in [-1, 1] with the channels averaged, and their rate in Hz.

    Raises:
        DataError: If the file is missing or is not audio that can be read.
    """
    rate, chunks = audio_chunks(path, None)
    return np.concatenate([np.zeros(0, dtype=np.float32), *chunks]), rate


def audio_chunks(path: Path, seconds: float | None) -> tuple[int, Iterator[FloatArray]]:
    """Reads a sound file piece by piece.

    Args:
        path: The file.
        seconds: Duration of a piece; None for any.

    Returns:
        The rate in Hz, and the pieces: [N] float32 in [-1, 1] with the channels averaged.

    Raises:
        DataError: If the file is missing or is not audio that can be read, at once or while its
            pieces are taken.
    """
    seconds = BLOCK_SECONDS if seconds is None else seconds
    try:
        header = read_header(path)
    except BadAudioError as error:
        raise _unreadable(path, error) from error

    def pieces() -> Iterator[FloatArray]:
        try:
            for block in decode(path, max(1, round(seconds * header.sampling_rate))):
                yield block.mean(axis=1)
        except BadAudioError as error:
            raise _unreadable(path, error) from error

    return header.sampling_rate, pieces()


def _unreadable(path: Path, error: BadAudioError) -> DataError:
    """What a user is told of a file that is no recording."""
    if error.reason == "unreadable":
        return DataError(f"{path}: cannot be read as audio ({error.detail})")
    return DataError(f"{path}: {error.detail}")


def check_samples(samples: FloatArray, name: str) -> None:
    """Refuses what no features can be computed of."""
    if samples.ndim != 1:
        raise DataError(f"{name}: expected samples of shape [N], got {list(samples.shape)}")
    if not np.issubdtype(samples.dtype, np.floating):
        raise DataError(
            f"{name}: expected float samples in [-1, 1], got {samples.dtype}; "
            "divide int16 samples by 32768"
        )
    with np.errstate(over="ignore"):  # 1e300 is a float64, and infinity to the features
        finite = np.isfinite(samples.astype(np.float32, copy=False)).all()
    if not finite:
        raise DataError(f"{name}: holds samples that are not finite (NaN or infinity)")


def check_duration(seconds: float, name: str) -> None:
    """Refuses recordings without a single frame."""
    if seconds == 0:
        raise DataError(f"{name}: holds no audio (zero samples)")
    if seconds < MIN_SECONDS:
        raise DataError(f"{name}: too short to recognise ({1000 * seconds:.1f} ms)")
