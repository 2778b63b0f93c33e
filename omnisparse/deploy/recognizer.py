"""Recognises one recording at a time: whole, or while it arrives.

LSTM transducers and LAS run on packed weights without torch (:mod:`omnisparse.deploy.engine`);
every other net runs in torch, on the device that it is on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.packed import PackedModel
from omnisparse.data.resampling import StreamingResampler
from omnisparse.deploy.engine import build_engine, engine_of, needs_torch, require_torch
from omnisparse.deploy.recording import (
    audio_chunks,
    check_duration,
    check_samples,
    read_audio,
)
from omnisparse.deploy.streaming import EndpointRules, StreamingSession
from omnisparse.deploy.tokens import FoundToken, Word, words_of
from omnisparse.errors import FormatError, OmnisparseError

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer


FloatArray = npt.NDArray[np.float32]

CHUNK_SECONDS = 0.32
"""Audio handed over at once where a whole recording is streamed."""

Runtime = Literal["auto", "sparse", "torch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """The words of one recording, and what it took to find them."""

    text: str
    """The recognised words."""

    audio_seconds: float
    """Duration of the recording."""

    seconds: float
    """Wall time of features and decoding, without reading the file."""

    words: tuple[Word, ...] | None = None
    """The words with their times and confidences; None where the model runs in torch, which does
    not tell them."""

    @property
    def rtf(self) -> float:
        """Real-time factor; below 1 is faster than real time."""
        return self.seconds / self.audio_seconds if self.audio_seconds > 0 else 0.0


class RecognizerStream:
    """One recording on its way through a recogniser; from :meth:`Recognizer.stream`.

    Memory does not grow with the recording, but for its text.

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
        self._recognizer = recognizer
        self._session = StreamingSession(recognizer.engine, self._extractor, beam=beam)
        self._tokens: list[int] = []
        self._num_samples = 0
        self._seconds = 0.0
        self._utterance_frame = 0
        self._utterance_token = 0
        self._newest = (0, 0)  # tokens so far, and encoder frames when the newest came

    @property
    def text(self) -> str:
        """What is recognised so far."""
        return self._tokenizer.decode(self._tokens)

    @property
    def audio_seconds(self) -> float:
        """Audio taken so far."""
        return self._num_samples / self._rate

    @property
    def words(self) -> tuple[Word, ...] | None:
        """The words so far; with a beam, later samples may change the newest."""
        return self._recognizer.words(self._session.found)

    def is_endpoint(self, rules: EndpointRules | None = None) -> bool:
        """Whether the speaker has come to the end of an utterance.

        Ask after each :meth:`accept`; where it says so, what was recognised since the endpoint
        before is an utterance, and :meth:`next_utterance` starts another one in this stream.

        Args:
            rules: When an utterance ends; Kaldi's where None.
        """
        rules = rules or EndpointRules()
        frames = self._session.num_frames
        has_words = len(self._tokens) > self._utterance_token
        since = self._newest[1] if has_words else self._utterance_frame
        frame = self._recognizer.frame_seconds
        return rules.ends(
            seconds=(frames - self._utterance_frame) * frame,
            silence=(frames - since) * frame,
            has_words=has_words,
        )

    def next_utterance(self) -> str:
        """Closes an utterance after :meth:`is_endpoint`; the stream goes on.

        Returns:
            The text since the utterance before.
        """
        text = self._tokenizer.decode(self._tokens[self._utterance_token :])
        self._utterance_token = len(self._tokens)
        self._utterance_frame = self._session.num_frames
        return text

    def accept(self, samples: FloatArray) -> str:
        """Takes the next samples, as many as there are.

        Args:
            samples: [N] float in [-1, 1], N may be 0.

        Returns:
            What is recognised so far; with a beam, later samples may change the newest words.

        Raises:
            DataError: If the samples are not [N], not float or not finite; the stream stays as it
                is.
            ValueError: If the recording has ended.
        """
        check_samples(samples, "samples")
        self._take(samples.astype(np.float32), final=False)
        return self.text

    def finish(self) -> Transcript:
        """Ends the recording.

        Returns:
            All of it: the text of offline recognition.

        Raises:
            ValueError: If the recording has already ended.
        """
        self._take(np.zeros(0, dtype=np.float32), final=True)
        return Transcript(
            text=self.text,
            audio_seconds=self.audio_seconds,
            seconds=self._seconds,
            words=self.words,
        )

    def _take(self, samples: FloatArray, *, final: bool) -> None:
        self._session.check_open()
        start = time.perf_counter()
        self._num_samples += len(samples)
        resampled = self._resampler.accept(samples, final=final)
        self._tokens = self._session.accept(resampled, final=final)
        if len(self._tokens) != self._newest[0]:
            self._newest = (len(self._tokens), self._session.num_frames)
        self._seconds += time.perf_counter() - start


class Recognizer:
    """A model with its tokens and features, ready to transcribe.

    Args:
        model: An engine, or a speech model of training, which is put into eval mode.
        tokenizer: Its tokens.
        extractor: Its features.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, extractor: FeatureExtractor) -> None:
        self.model = model
        self.engine = engine_of(model)
        self.tokenizer = tokenizer
        self.extractor = extractor

    @classmethod
    def from_path(
        cls, path: str | Path, *, size: str | None = None, runtime: Runtime = "auto"
    ) -> Recognizer:
        """Loads an artifact directory, a run directory (its dense net), or a nested file.

        LSTM transducers and LAS are run on packed weights, without torch.

        Args:
            path: The directory, or the nested file or its ``http(s)://`` address.
            size: Which model of a nested file, as ``25%`` or ``16M``; the largest where None.
            runtime: ``sparse`` for packed weights, ``torch`` for the net of training, ``auto`` for
                packed weights where the kernels know the net.

        Raises:
            OmnisparseError: If the directory is not a whole and valid model, or has no sizes, or
                its net needs torch and that is not installed.
            ValueError: If the nested file has no model of ``size``.
            OSError: If its files cannot be read.
        """
        # Through the public API: this room stands below the one that knows what a run is.
        import omnisparse

        if runtime != "torch":
            files = omnisparse.open_model(path, size=size)
            why = needs_torch(files.model)
            if why is None:
                return cls.from_files(files)
            if runtime == "sparse":
                raise OmnisparseError(f"{path}: {why} has no sparse kernels; take runtime torch")
            require_torch(f"{path}: {why}")
        require_torch(f"{path}: runtime torch")
        loaded = omnisparse.load_model(path, size=size)
        return cls(loaded.model, loaded.tokenizer, loaded.extractor)

    @classmethod
    def from_files(cls, files: PackedModel) -> Recognizer:
        """Packs the weights of an LSTM transducer or LAS.

        Raises:
            FormatError: If its parts do not fit together.
        """
        from omnisparse.data.features import FeatureExtractor
        from omnisparse.data.tokenizer import Tokenizer

        try:
            extractor = FeatureExtractor.from_dict(files.features)
        except (TypeError, ValueError, KeyError) as error:
            raise FormatError(f"{files.place}: its features cannot be used ({error})") from error
        tokenizer, model = Tokenizer.from_bytes(files.tokenizer), files.model
        if extractor.input_dim != model.get("input_dim"):
            raise FormatError(
                f"{files.place}: its features have {extractor.input_dim} values a frame, its model "
                f"reads {model.get('input_dim')}"
            )
        if not isinstance(model.get("vocab_size"), int) or (
            tokenizer.vocab_size < model["vocab_size"]
        ):
            raise FormatError(
                f"{files.place}: its tokenizer has {tokenizer.vocab_size} tokens, its model "
                f"{model.get('vocab_size')}"
            )
        return cls(build_engine(files), tokenizer, extractor)

    @property
    def frame_seconds(self) -> float:
        """Seconds of audio of an encoder frame."""
        return 0.01 * self.extractor.stack * self.engine.time_reduction

    def words(self, found: Sequence[FoundToken]) -> tuple[Word, ...] | None:
        """The words of tokens; None where the engine does not tell their times."""
        if not self.engine.tells_times:
            return None
        return tuple(words_of(found, self.tokenizer, self.frame_seconds))

    def stream(self, *, beam: int = 1, sampling_rate: int | None = None) -> RecognizerStream:
        """Starts a recording that arrives piece by piece.

            stream = recognizer.stream()
            for samples in microphone:
                print(stream.accept(samples))
            transcript = stream.finish()

        Args:
            beam: Hypotheses kept while decoding; 1 is greedy.
            sampling_rate: Rate of the samples in Hz, the extractor's where None.

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
            sampling_rate: Rate of the samples in Hz, the extractor's where None. A file knows
                its own.
            beam: Hypotheses kept while decoding; 1 is greedy.
            streaming: Hand the recording over chunk by chunk, as a microphone would; a file is
                not read into memory as a whole.
            on_partial: Called with the text so far after every chunk, where streaming.

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
        found = self.engine.recognise(self.extractor(samples), beam=beam)
        text = self.tokenizer.decode([item.token for item in found])
        return Transcript(
            text=text,
            audio_seconds=len(samples) / self.extractor.sampling_rate,
            seconds=time.perf_counter() - start,
            words=self.words(found),
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
            check_samples(audio, name)
            step = max(1, round(CHUNK_SECONDS * rate))
            chunks: Iterator[FloatArray] = (
                audio[start : start + step] for start in range(0, len(audio), step)
            )
        else:
            name = str(audio)
            rate, chunks = audio_chunks(Path(audio), CHUNK_SECONDS)
        stream = self.stream(beam=beam, sampling_rate=rate)
        for chunk in chunks:
            check_samples(chunk, name)
            text = stream.accept(chunk)
            if on_partial is not None:
                on_partial(text)
        transcript = stream.finish()
        check_duration(transcript.audio_seconds, name)
        return transcript

    def _rate_of(self, sampling_rate: int | None) -> int:
        """Rate of samples in memory, checked."""
        rate = self.extractor.sampling_rate if sampling_rate is None else sampling_rate
        if rate < 1:
            raise ValueError(f"sampling_rate: expected at least 1 Hz, got {rate}")
        return rate

    def load_samples(
        self, audio: str | Path | FloatArray, sampling_rate: int | None = None
    ) -> FloatArray:
        """Audio as the extractor wants it: [N] float32 at its rate, one channel.

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
        check_samples(samples, name)
        check_duration(len(samples) / rate, name)
        return StreamingResampler(rate, target).accept(samples.astype(np.float32), final=True)
