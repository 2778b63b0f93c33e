"""Audio of an utterance, read, mixed and checked in one way for training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse import Recording
    from lhotse.cut import Cut

FloatArray = npt.NDArray[np.float32]


def read_samples(cut: Cut, sampling_rate: int | None = None) -> FloatArray:
    """Audio of a cut, exactly as long as the cut says.

    Args:
        cut: An utterance; its changes of speed and rate are applied, its channels averaged.
        sampling_rate: Rate of the samples, in Hz; None for that of the cut.

    Returns:
        [N] float32 in [-1, 1].

    Raises:
        DataError: If the audio cannot be read, is empty or holds NaN or infinite samples.
    """
    from lhotse.audio.backend import (
        LibsndfileBackend,
        get_current_audio_backend,
        set_current_audio_backend,
    )

    # The default tries other readers after libsndfile: one of them leaks the files it refuses,
    # another hands the name of the file to a shell.
    # lhotse's own context manager does not restore the backend after an error.
    previous = get_current_audio_backend()
    set_current_audio_backend(LibsndfileBackend())
    try:
        if sampling_rate is not None and cut.sampling_rate != sampling_rate:
            cut = cut.resample(sampling_rate)
        channels: FloatArray = np.atleast_2d(np.asarray(cut.load_audio(), dtype=np.float32))
    # A broken file makes lhotse and libsndfile fail in too many ways to list them.
    except Exception as error:
        raise DataError(f"{cut.id}: its audio cannot be read ({first_cause(error)})") from error
    finally:
        set_current_audio_backend(previous)
    if channels.size == 0 or not np.isfinite(channels).all():
        raise DataError(f"{cut.id}: its audio is empty or holds values that are not finite")
    samples: FloatArray = channels.mean(axis=0)
    wanted = cut.num_samples
    if len(samples) < wanted:
        samples = np.pad(samples, (0, wanted - len(samples)))
    return samples[:wanted]


def first_cause(error: BaseException) -> str:
    """One line of the first error; lhotse wraps it several times and may lose its text."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def recordings_of(cut: Cut) -> list[Recording]:
    """Recordings that a cut is made of: several where it mixes others, none for mere padding."""
    from lhotse.cut import MixedCut
    from lhotse.cut.data import DataCut

    # By type: a manifest may give a cut any further attribute, one named `tracks` too.
    parts = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    recordings = [part.recording for part in parts if isinstance(part, DataCut)]
    return [recording for recording in recordings if recording is not None]
