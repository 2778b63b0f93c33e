"""Noise and rooms from folders of recordings, drawn anew for every utterance and epoch.

A noise is a stretch of a recording of any kind (`MUSAN <https://www.openslr.org/17>`_: music,
noise, speech), a room an impulse response (`RIRS_NOISES <https://www.openslr.org/28>`_). What an
utterance gets is a function of (seed, epoch, utterance), so resumed runs repeat it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from omnisparse.data.augmentation import add_noise, add_scaled, utterance_generator
from omnisparse.data.content import ContentCache
from omnisparse.data.decoding import BadAudioError, read_header, read_stretch
from omnisparse.data.formats.lines import AUDIO_SUFFIXES, is_visible
from omnisparse.data.resampling import StreamingResampler
from omnisparse.errors import DataError

FloatArray = npt.NDArray[np.float32]

_LONGEST_RESPONSE = 4.0
"""Seconds of an impulse response that are used; what comes later cannot be heard."""


@dataclass(frozen=True, slots=True)
class _Recording:
    path: str
    sampling_rate: int
    frames: int
    channels: int


class Recordings:
    """The sound files in a folder, at any depth, in the order of their paths.

    Args:
        folder: The folder; its recordings may have any rate and number of channels.
        what: What they are, for messages.

    Raises:
        DataError: If the folder is missing, holds no sound file, or one that cannot be read.
    """

    def __init__(self, folder: Path, what: str) -> None:
        if not folder.is_dir():
            raise DataError(f"{what} {folder}: no such folder")
        self.folder = folder
        self._files = []
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in AUDIO_SUFFIXES and is_visible(path.relative_to(folder)):
                try:
                    header = read_header(path)
                except BadAudioError as error:
                    raise DataError(f"{what} {path}: {error.detail}") from error
                if header.frames:
                    fields = (header.sampling_rate, header.frames, header.channels)
                    self._files.append(_Recording(str(path.absolute()), *fields))
        if not self._files:
            raise DataError(f"{what} {folder}: no sound files in it ({', '.join(AUDIO_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self._files)

    def digest(self) -> str:
        """Hash of the contents, in order; files that were seen before are not read again."""
        paths = [one.path for one in self._files]
        digests = ContentCache().digests(paths)
        text = "\n".join(digests.get(path, path) for path in paths)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def draw(self, generator: np.random.Generator) -> _Recording:
        """One of them, each as likely as any other."""
        return self._files[int(generator.integers(len(self._files)))]


class RoomAugment:
    """Gives utterances the sound of a room, and noise, in this order.

    Args:
        noises: Recordings of noise; None makes noise between white and pink.
        noise_probability: Share of the utterances that get noise, in [0, 1].
        noise_snr_db: Range of their signal-to-noise ratio, in dB.
        responses: Impulse responses of rooms; None for no rooms.
        reverb_probability: Share of the utterances that get a room, in [0, 1].
        seed: Seed of all draws.
    """

    def __init__(
        self,
        *,
        noises: Recordings | None = None,
        noise_probability: float = 0.0,
        noise_snr_db: tuple[float, float] = (10.0, 30.0),
        responses: Recordings | None = None,
        reverb_probability: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._noises = noises
        self._noise_probability = noise_probability
        self._noise_snr_db = noise_snr_db
        self._responses = responses
        self._reverb_probability = reverb_probability if responses is not None else 0.0
        self._seed = seed

    @property
    def changes_nothing(self) -> bool:
        """Whether every utterance stays as it is."""
        return self._noise_probability == 0.0 and self._reverb_probability == 0.0

    def digest(self) -> str:
        """Hash of the contents of both folders; empty if there are none."""
        folders = (self._noises, self._responses)
        return "-".join(one.digest() for one in folders if one is not None)

    def __call__(
        self, samples: FloatArray, sampling_rate: int, utterance: str, epoch: int
    ) -> FloatArray:
        """An utterance as it sounds in an epoch.

        Args:
            samples: [N] float32.
            sampling_rate: In Hz.
            utterance: Its name.
            epoch: From 0.

        Returns:
            [N] float32.

        Raises:
            DataError: If a recording cannot be read.
        """
        generator = utterance_generator("room", self._seed, epoch, utterance)
        if generator.random() < self._reverb_probability and self._responses is not None:
            samples = reverberate(samples, _response(self._responses, generator, sampling_rate))
        generator = utterance_generator("noise", self._seed, epoch, utterance)
        if generator.random() < self._noise_probability:
            snr_db = generator.uniform(*self._noise_snr_db)
            if self._noises is None:
                return add_noise(samples, snr_db, generator)
            noise = _stretch(self._noises, generator, sampling_rate, len(samples))
            return add_scaled(samples, noise.astype(np.float64), snr_db)
        return samples


def reverberate(samples: FloatArray, response: FloatArray) -> FloatArray:
    """The sound of samples in a room, as loud as before and not later.

    Args:
        samples: [N] float32.
        response: [R], the impulse response; its largest value is the direct sound, which stays
            where it is in time.

    Returns:
        [N] float32: the convolution, scaled to the power of ``samples``; ``samples`` where the
        response is silent.
    """
    length = len(samples) + len(response) - 1
    size = 1 << max(1, (length - 1).bit_length())  # fast for any length
    spectrum = np.fft.rfft(samples.astype(np.float64), size)
    spectrum *= np.fft.rfft(response.astype(np.float64), size)
    direct = int(np.argmax(np.abs(response)))
    heard = np.fft.irfft(spectrum, size)[direct : direct + len(samples)]
    power = float(np.mean(np.square(heard)))
    if power == 0.0:
        return samples
    heard *= np.sqrt(float(np.mean(np.square(samples, dtype=np.float64))) / power)
    return np.asarray(heard, dtype=np.float32)


def _response(
    responses: Recordings, generator: np.random.Generator, sampling_rate: int
) -> FloatArray:
    """A room's response, of one of its channels."""
    recording = responses.draw(generator)
    channel = int(generator.integers(recording.channels))
    count = min(recording.frames, int(_LONGEST_RESPONSE * recording.sampling_rate))
    return _read(recording, 0, count, channel, sampling_rate)


def _stretch(
    noises: Recordings, generator: np.random.Generator, sampling_rate: int, count: int
) -> FloatArray:
    """``count`` samples from any place of a noise; a shorter one is repeated."""
    recording = noises.draw(generator)
    place = generator.random()
    channel = int(generator.integers(recording.channels))
    wanted = -(-count * recording.sampling_rate // sampling_rate)
    start = int(place * max(1, recording.frames - wanted + 1))
    noise = _read(recording, start, min(wanted, recording.frames), channel, sampling_rate)
    # A repeated noise begins anywhere, too.
    if len(noise) < count:
        noise = np.roll(np.tile(noise, -(-count // len(noise))), -int(place * len(noise)))
    return noise[:count]


def _read(
    recording: _Recording, start: int, count: int, channel: int, sampling_rate: int
) -> FloatArray:
    try:
        samples = read_stretch(recording.path, start, count)[:, channel]
    except (BadAudioError, IndexError) as error:
        raise DataError(f"{recording.path}: it cannot be read any more") from error
    if recording.sampling_rate != sampling_rate:
        resampler = StreamingResampler(recording.sampling_rate, sampling_rate)
        samples = resampler.accept(np.ascontiguousarray(samples), final=True)
    if len(samples) == 0 or not np.isfinite(samples).all():
        raise DataError(f"{recording.path}: it is empty or holds values that are not finite")
    return samples
