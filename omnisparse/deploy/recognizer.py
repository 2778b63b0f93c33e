"""Recognises one recording at a time with a loaded model, on the device the model is on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from omnisparse.data.decoding import BadAudioError, decode, read_header
from omnisparse.data.resampling import StreamingResampler
from omnisparse.deploy.streaming import StreamingSession
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer


FloatArray = npt.NDArray[np.float32]

MIN_SECONDS = 0.01
"""One frame shift; shorter audio has no features."""

CHUNK_SECONDS = 0.32
"""Audio per chunk when a whole recording is streamed."""

BLOCK_SECONDS = 30.0
"""Audio decoded at once where a whole recording is wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """The words of one recording, and the time of the recognition."""

    text: str
    """The recognised words."""

    audio_seconds: float
    """Duration of the recording."""

    seconds: float
    """Wall time of features and decoding, without reading the file."""

    @property
    def rtf(self) -> float:
        """Real-time factor; below 1 is faster than real time."""
        return self.seconds / self.audio_seconds if self.audio_seconds > 0 else 0.0


class RecognizerStream:
    """One recording that is being recognised; made by :meth:`Recognizer.stream`.

    Memory does not grow with the recording, except for its text.

    Args:
        recognizer: The recogniser.
        beam: Hypotheses kept while decoding; 1 is greedy.
        sampling_rate: Rate of the samples in Hz.
    """

    def __init__(self, recognizer: Recognizer, *, beam: int, sampling_rate: int) -> None:
        self._extractor = recognizer.extractor
        self._tokenizer = recognizer.tokenizer
        self._rate = sampling_rate
        self._resampler = StreamingResampler(sampling_rate, self._extractor.sampling_rate)
        self._session = StreamingSession(recognizer.model, self._extractor, beam=beam)
        self._tokens: list[int] = []
        self._num_samples = 0
        self._seconds = 0.0

    @property
    def text(self) -> str:
        """The text so far."""
        return self._tokenizer.decode(self._tokens)

    @property
    def audio_seconds(self) -> float:
        """Duration of the audio so far."""
        return self._num_samples / self._rate

    def accept(self, samples: FloatArray) -> str:
        """Processes the next samples.

        Args:
            samples: [N] float in [-1, 1], N may be 0.

        Returns:
            The text so far; with a beam, later samples may change the newest words.

        Raises:
            DataError: If the samples are not [N], not float or not finite; the stream is not
                changed then.
            ValueError: If the recording has ended.
        """
        _check_samples(samples, "samples")
        self._take(samples.astype(np.float32), final=False)
        return self.text

    def finish(self) -> Transcript:
        """Ends the recording.

        Returns:
            The complete transcript, equal to that of offline recognition.

        Raises:
            ValueError: If the recording has already ended.
        """
        self._take(np.zeros(0, dtype=np.float32), final=True)
        return Transcript(text=self.text, audio_seconds=self.audio_seconds, seconds=self._seconds)

    def _take(self, samples: FloatArray, *, final: bool) -> None:
        self._session.check_open()
        start = time.perf_counter()
        self._num_samples += len(samples)
        resampled = self._resampler.accept(samples, final=final)
        self._tokens = self._session.accept(resampled, final=final)
        self._seconds += time.perf_counter() - start


class Recognizer:
    """A model with its tokens and features, ready to transcribe.

    Args:
        model: A speech model with ``decode``; put into eval mode.
        tokenizer: Its tokens.
        extractor: Its features.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, extractor: FeatureExtractor) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.extractor = extractor

    @classmethod
    def from_path(cls, path: str | Path, *, size: str | None = None) -> Recognizer:
        """Loads an artifact directory, a run directory (its dense net), or a nested file.

        Args:
            path: The directory, or the nested file or its ``http(s)://`` address.
            size: Model of a nested file, such as ``25%`` or ``16M``; None for the largest.

        Raises:
            OmnisparseError: If the directory is not a complete and valid model, or has no sizes.
            ValueError: If the nested file has no model of ``size``.
            OSError: If its files cannot be read.
        """
        # Through the public API, because this room must not import the room of runs.
        import omnisparse

        loaded = omnisparse.load_model(path, size=size)
        return cls(loaded.model, loaded.tokenizer, loaded.extractor)

    def stream(self, *, beam: int = 1, sampling_rate: int | None = None) -> RecognizerStream:
        """Starts a recording that arrives in pieces.

            stream = recognizer.stream()
            for samples in microphone:
                print(stream.accept(samples))
            transcript = stream.finish()

        Args:
            beam: Hypotheses kept while decoding; 1 is greedy.
            sampling_rate: Rate of the samples in Hz; None for the extractor's rate.

        Raises:
            ValueError: If ``beam`` or ``sampling_rate`` is below 1, or the model cannot stream.
        """
        return RecognizerStream(self, beam=beam, sampling_rate=self._rate_of(sampling_rate))

    def transcribe(
        self,
        audio: str | Path | FloatArray,
        *,
        sampling_rate: int | None = None,
        beam: int = 1,
        streaming: bool = False,
        on_partial: Callable[[str], None] | None = None,
    ) -> Transcript:
        """Recognises one recording.

        Args:
            audio: Path of a sound file (WAV, FLAC, OGG, ...), or samples: [N] float in [-1, 1].
            sampling_rate: Rate of the samples in Hz; None for the extractor's rate. Ignored for a
                file, which states its rate.
            beam: Hypotheses kept while decoding; 1 is greedy.
            streaming: Recognise chunk by chunk, as with a microphone; a file is not read into
                memory as a whole.
            on_partial: Called with the text so far after every chunk when streaming.

        Raises:
            DataError: If the recording cannot be read, is empty or holds values that are not finite
                floats.
            ValueError: If ``beam`` or ``sampling_rate`` is below 1, or the model cannot stream.
        """
        if beam < 1:
            raise ValueError(f"beam: expected at least 1, got {beam}")
        if streaming:
            return self._transcribe_stream(audio, sampling_rate, beam, on_partial)
        samples = self.load_samples(audio, sampling_rate)
        start = time.perf_counter()
        tokens = self._decode(samples, beam)
        return Transcript(
            text=self.tokenizer.decode(tokens),
            audio_seconds=len(samples) / self.extractor.sampling_rate,
            seconds=time.perf_counter() - start,
        )

    def _transcribe_stream(
        self,
        audio: str | Path | FloatArray,
        sampling_rate: int | None,
        beam: int,
        on_partial: Callable[[str], None] | None,
    ) -> Transcript:
        """Recognises one recording chunk by chunk."""
        if isinstance(audio, np.ndarray):
            name, rate = "samples", self._rate_of(sampling_rate)
            _check_samples(audio, name)
            step = max(1, round(CHUNK_SECONDS * rate))
            chunks: Iterator[FloatArray] = (
                audio[start : start + step] for start in range(0, len(audio), step)
            )
        else:
            name = str(audio)
            rate, chunks = audio_chunks(Path(audio), CHUNK_SECONDS)
        stream = self.stream(beam=beam, sampling_rate=rate)
        for chunk in chunks:
            _check_samples(chunk, name)
            text = stream.accept(chunk)
            if on_partial is not None:
                on_partial(text)
        transcript = stream.finish()
        _check_duration(transcript.audio_seconds, name)
        return transcript

    def _rate_of(self, sampling_rate: int | None) -> int:
        """Rate of samples in memory, checked."""
        rate = self.extractor.sampling_rate if sampling_rate is None else sampling_rate
        if rate < 1:
            raise ValueError(f"sampling_rate: expected at least 1 Hz, got {rate}")
        return rate

    def _decode(self, samples: FloatArray, beam: int) -> list[int]:
        """Token ids of a whole recording."""
        features = torch.from_numpy(self.extractor(samples))[None]
        device = next(self.model.parameters()).device
        lengths = torch.tensor([features.shape[1]], device=device)
        with torch.inference_mode():
            (tokens,) = self.model.decode(features.to(device), lengths, beam=beam)
        return list(tokens)

    def load_samples(
        self, audio: str | Path | FloatArray, sampling_rate: int | None = None
    ) -> FloatArray:
        """Audio in the form that the extractor needs: [N] float32 at its rate, one channel.

        Args:
            audio: A path, or samples: [N] float in [-1, 1].
            sampling_rate: Rate of samples in Hz, as in :meth:`transcribe`.

        Raises:
            DataError: As :meth:`transcribe`.
            ValueError: If ``sampling_rate`` is below 1.
        """
        target = self.extractor.sampling_rate
        if isinstance(audio, np.ndarray):
            name, samples, rate = "samples", audio, self._rate_of(sampling_rate)
        else:
            name = str(audio)
            samples, rate = read_audio(Path(audio))
        _check_samples(samples, name)
        _check_duration(len(samples) / rate, name)
        return StreamingResampler(rate, target).accept(samples.astype(np.float32), final=True)


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
    """Reads a sound file in pieces.

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


def _check_samples(samples: FloatArray, name: str) -> None:
    """Refuses samples from which no features can be computed."""
    if samples.ndim != 1:
        raise DataError(f"{name}: expected samples of shape [N], got {list(samples.shape)}")
    if not np.issubdtype(samples.dtype, np.floating):
        raise DataError(
            f"{name}: expected float samples in [-1, 1], got {samples.dtype}; "
            "divide int16 samples by 32768"
        )
    with np.errstate(over="ignore"):  # 1e300 is a float64, but infinity in float32
        finite = np.isfinite(samples.astype(np.float32, copy=False)).all()
    if not finite:
        raise DataError(f"{name}: holds samples that are not finite (NaN or infinity)")


def _check_duration(seconds: float, name: str) -> None:
    """Refuses recordings without a single frame."""
    if seconds == 0:
        raise DataError(f"{name}: holds no audio (zero samples)")
    if seconds < MIN_SECONDS:
        raise DataError(f"{name}: too short to recognise ({1000 * seconds:.1f} ms)")
