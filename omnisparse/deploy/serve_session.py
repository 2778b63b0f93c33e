"""One recording, heard by several models at once."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omnisparse.deploy.recognizer import Recognizer
from omnisparse.deploy.recognizer_stream import RecognizerStream
from omnisparse.errors import DataError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model of the page.

    Attributes:
        name: What people call it.
        recognizer: It, loaded.
        bytes: Of its files.
        nonzero: Non-zero parameters.
        parameters: Parameters of the dense net.
        streams: Whether it recognises while one speaks; a LAS wants the whole recording.
    """

    name: str
    recognizer: Recognizer
    bytes: int
    nonzero: int
    parameters: int
    streams: bool

    @property
    def rate(self) -> int:
        """Sampling rate that it hears, in Hz."""
        return int(self.recognizer.extractor.sampling_rate)

    def to_dict(self) -> dict[str, Any]:
        """What the page is told of it."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "nonzero": self.nonzero,
            "parameters": self.parameters,
            "streams": self.streams,
        }


class Session:
    """A recording on its way through all models.

    Args:
        models: Them.
        rate: Sampling rate of what arrives, in Hz.
        max_seconds: Longest recording.
    """

    def __init__(self, models: Sequence[ServedModel], rate: int, *, max_seconds: float) -> None:
        self.used = time.monotonic()
        self._rate = rate
        self._max_seconds = max_seconds
        self._num_samples = 0
        self._hearings: list[_Streaming | _Waiting] = [
            _Streaming(model.recognizer, rate)
            if model.streams
            else _Waiting(model.recognizer, rate)
            for model in models
        ]

    def accept(self, samples: FloatArray) -> list[dict[str, Any]]:
        """Take the next samples.

        Args:
            samples: ``[N]`` float32 in [-1, 1].

        Returns:
            Of each model ``text`` so far, ``seconds`` it has worked, and ``latency``: what it
            worked on these samples.

        Raises:
            DataError: If a sample is not finite, or the recording becomes too long.
        """
        if not np.isfinite(samples).all():
            raise DataError("the samples are not finite (NaN or infinity)")
        if self._num_samples + len(samples) > self._max_seconds * self._rate:
            raise DataError(f"a recording may last {self._max_seconds:g} s, and this one is longer")
        self._num_samples += len(samples)
        return [self._timed(hearing, hearing.accept, samples) for hearing in self._hearings]

    def finish(self) -> list[dict[str, Any]]:
        """End the recording; as :meth:`accept`, and ``latency`` is the wait after the last word.

        Raises:
            DataError: If it held no sound.
        """
        if self._num_samples == 0:
            raise DataError("the recording holds no sound (zero samples)")
        return [self._timed(hearing, hearing.finish) for hearing in self._hearings]

    def _timed(self, hearing: Any, work: Any, *given: Any) -> dict[str, Any]:
        start = time.perf_counter()
        text = work(*given)
        latency = time.perf_counter() - start
        hearing.seconds += latency
        return {
            "text": text,
            "seconds": hearing.seconds,
            "latency": latency,
            "audio_seconds": self._num_samples / self._rate,
        }


class _Streaming:
    """A model that recognises while one speaks."""

    def __init__(self, recognizer: Recognizer, rate: int) -> None:
        self.seconds = 0.0
        self._stream: RecognizerStream = recognizer.stream(sampling_rate=rate)

    def accept(self, samples: FloatArray) -> str:
        return self._stream.accept(samples)

    def finish(self) -> str:
        return self._stream.finish().text


class _Waiting:
    """A model that wants the whole recording."""

    def __init__(self, recognizer: Recognizer, rate: int) -> None:
        self.seconds = 0.0
        self._recognizer = recognizer
        self._rate = rate
        self._samples: list[FloatArray] = []

    def accept(self, samples: FloatArray) -> str:
        self._samples.append(samples.copy())
        return ""

    def finish(self) -> str:
        whole = np.concatenate(self._samples)
        return self._recognizer.transcribe(whole, sampling_rate=self._rate).text


def read_upload(data: bytes, max_seconds: float, target: int) -> tuple[FloatArray, int, str]:
    """Read a sound file that someone sent.

    Args:
        data: The file.
        max_seconds: Longest recording.
        target: Sampling rate of the models, in Hz.

    Returns:
        ``[N]`` float32 samples, channels averaged; their rate; and one line of what was changed,
        or nothing.

    Raises:
        DataError: If it is no sound, holds none, or is too long.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = int(file.samplerate), int(file.channels)
            most = int(max_seconds * rate)
            samples = file.read(most + 1, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise DataError("the file cannot be read as audio (WAV, FLAC, OGG and MP3 can)") from error
    if len(samples) == 0:
        raise DataError("the file holds no audio (zero samples)")
    if len(samples) > most:
        raise DataError(f"a recording may last {max_seconds:g} s, and this one is longer")
    changes = [f"{channels} channels mixed into one"] if channels > 1 else []
    if rate != target:
        changes.append(f"{rate:,} Hz resampled to {target:,} Hz")
    mixed = np.asarray(samples.mean(axis=1), dtype=np.float32)
    return mixed, rate, ", ".join(changes)
