"""Reading the audio of an utterance in the same way for training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnisparse.data.decoding import BadAudioError, read_stretch
from omnisparse.data.resampling import StreamingResampler
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse import Recording
    from lhotse.cut import Cut

FloatArray = npt.NDArray[np.float32]

_SPEED_TOLERANCE = 2
"""Samples by which audio of another speed may miss the length of its cut, which lhotse rounds."""


def read_samples(cut: Cut, sampling_rate: int | None = None) -> FloatArray:
    """Audio of a cut, with exactly the duration of the cut.

    Args:
        cut: An utterance; its changes of speed and rate are applied, of several channels that it
            asks for the mean is taken.
        sampling_rate: Rate of the samples, in Hz; None for that of the cut.

    Returns:
        [N] float32 in [-1, 1].

    Raises:
        DataError: If the audio cannot be read, is empty or holds NaN or infinite samples.
    """
    if sampling_rate is not None and cut.sampling_rate != sampling_rate:
        from omnisparse.data.rates import at_rate

        cut = at_rate(cut, sampling_rate)
    try:
        channels = _read_channels(cut)
    except BadAudioError as error:
        raise DataError(f"{cut.id}: its audio cannot be read ({error.detail})") from error
    if channels.size == 0 or not np.isfinite(channels).all():
        raise DataError(f"{cut.id}: its audio is empty or holds values that are not finite")
    samples: FloatArray = channels[0] if len(channels) == 1 else channels.mean(axis=0)
    wanted = cut.num_samples
    if len(samples) < wanted:
        samples = np.pad(samples, (0, wanted - len(samples)))
    return samples[:wanted]


def _read_channels(cut: Any) -> FloatArray:
    """Channels that a cut asks for, [C, N]."""
    plain = _plain_source(cut)
    speed = None if plain is None else _speed(cut)
    if plain is None or speed is None:
        return _read_composed(cut)
    path, places = plain
    start, count = round(cut.start * cut.sampling_rate), cut.num_samples
    try:
        samples = read_stretch(path, start, count if speed == 1.0 else None)
    except BadAudioError as error:
        raise BadAudioError(error.reason, f"{error.detail}: {path}") from error
    if max(places) >= samples.shape[1]:
        detail = f"no channel {max(places)}, the file has {samples.shape[1]}: {path}"
        raise BadAudioError("no-channel", detail)
    channels = np.ascontiguousarray(samples.T[list(places)])
    if speed == 1.0:
        return channels
    channels = np.stack([_at_speed(channel, cut.sampling_rate, speed) for channel in channels])
    if abs(channels.shape[1] - count) > _SPEED_TOLERANCE:
        return _read_composed(cut)  # which refuses it, or knows better
    return channels


def _speed(cut: Any) -> float | None:
    """How much faster than its file a cut is; None where more is asked, or a part of the file."""
    transforms = cut.recording.transforms
    if not transforms:
        return 1.0
    if cut.start != 0 or cut.num_samples != cut.recording.num_samples or len(transforms) > 1:
        return None
    from lhotse.augmentation import Speed

    only = transforms[0]
    return float(only.factor) if isinstance(only, Speed) else None


def _at_speed(samples: FloatArray, sampling_rate: int, speed: float) -> FloatArray:
    """[N] samples at another speed, as lhotse makes them, to the rounding of float32.

    lhotse's convolution takes four times as long: oneDNN prepares it for every new length.

    Deviation: factors such as 0.9371 are replaced by close ones (see ``StreamingResampler``).
    """
    resampler = StreamingResampler(round(sampling_rate * speed), sampling_rate)
    return resampler.accept(samples, final=True)


def _plain_source(cut: Any) -> tuple[str, tuple[int, ...]] | None:
    """File and places of channels in it, of a cut of one file; None for any other."""
    recording = getattr(cut, "recording", None)
    if recording is None or len(recording.sources) != 1:
        return None
    source = recording.sources[0]
    if source.type != "file" or len(recordings_of(cut)) != 1:
        return None
    asked = cut.channel if isinstance(cut.channel, list | tuple) else [cut.channel]
    if not set(asked) <= set(source.channels):
        return None
    return str(source.source), tuple(source.channels.index(one) for one in asked)


def _read_composed(cut: Any) -> FloatArray:
    """Audio of a cut that lhotse makes out of several, or changes; [C, N]."""
    from omnisparse.data.lhotse_backend import exact_backend

    try:
        with exact_backend():
            return np.atleast_2d(np.asarray(cut.load_audio(), dtype=np.float32))
    # Broken audio makes lhotse fail in too many ways to list them.
    except Exception as error:
        found = _first_cause(error)
        if isinstance(found, BadAudioError):
            raise BadAudioError(found.reason, found.detail) from error
        files = {str(s.source) for recording in recordings_of(cut) for s in recording.sources}
        detail = f"lhotse cannot put it together of {', '.join(sorted(files)) or 'no file'}"
        raise BadAudioError("unreadable", detail) from error


def _first_cause(error: BaseException) -> BaseException:
    """The first error; lhotse wraps it several times and may lose its text."""
    while error.__context__ is not None and not isinstance(error, BadAudioError):
        error = error.__context__
    return error


def recordings_of(cut: Cut) -> list[Recording]:
    """Recordings that a cut consists of: several for a mixture, none for pure padding."""
    from lhotse.cut import MixedCut
    from lhotse.cut.data import DataCut

    # Checked by type, because a manifest may give a cut any attribute, also one named `tracks`.
    parts = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    recordings = [part.recording for part in parts if isinstance(part, DataCut)]
    return [recording for recording in recordings if recording is not None]
