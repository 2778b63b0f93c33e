"""Recognises one recording at a time: whole, or while it arrives.

LSTM transducers and LAS run on packed weights without torch (:mod:`omnisparse.deploy.engine`);
every other net runs in torch, on the device that it is on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.packed import PackedModel
from omnisparse.data.pauses import MIN_PIECE_SECONDS, cut_at_pauses, cut_length
from omnisparse.data.resampling import StreamingResampler
from omnisparse.deploy.engine import build_engine, engine_of, needs_torch, require_torch
from omnisparse.deploy.log_mel import native_log_mel
from omnisparse.deploy.recognizer_stream import RecognizerStream
from omnisparse.deploy.recording import (
    audio_chunks,
    check_duration,
    check_samples,
    read_audio,
)
from omnisparse.deploy.tokens import FoundToken, Word, words_of
from omnisparse.deploy.transcript import Transcript
from omnisparse.errors import FormatError, OmnisparseError

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer


FloatArray = npt.NDArray[np.float32]

CHUNK_SECONDS = 0.32
"""Audio per chunk when a whole recording is streamed."""

Runtime = Literal["auto", "sparse", "torch"]

LONG_SECONDS = 60.0
"""A net that streams hears longer recordings in parts: the same words, and memory does not grow."""

_LONG_CHUNK_SECONDS = 10.0


class Recognizer:
    """A model with its tokens and features, ready to transcribe.

    Args:
        model: An engine, or a speech model of training, which is put into eval mode.
        tokenizer: Its tokens.
        extractor: Its features.
        cut_above: Length in seconds above which a recording is cut at pauses, as a net whose
            attention needs the whole of it must have; None for never.
        trained_seconds: Longest utterance that the net was trained on, for whoever wants to tell;
            None where nobody knows.

    Raises:
        ValueError: If ``cut_above`` is below :data:`omnisparse.data.pauses.MIN_PIECE_SECONDS`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        extractor: FeatureExtractor,
        *,
        cut_above: float | None = None,
        trained_seconds: float | None = None,
    ) -> None:
        if cut_above is not None and not cut_above >= MIN_PIECE_SECONDS:
            raise ValueError(
                f"cut_above is {cut_above:g}; at least {MIN_PIECE_SECONDS:g} second, or never"
            )
        self.model = model
        self.engine = engine_of(model)
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.cut_above = cut_above
        self.trained_seconds = trained_seconds

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        size: str | None = None,
        runtime: Runtime = "auto",
        cut_above: float | None = None,
    ) -> Recognizer:
        """Loads an artifact directory, a run directory (its dense net), or a nested file.

        LSTM transducers and LAS are run on packed weights, without torch.

        Args:
            path: The directory, or the nested file or its ``http(s)://`` address.
            size: Which model of a nested file, as ``25%`` or ``16M``; the largest where None.
            cut_above: Length in seconds above which a recording is cut, 0 for never; None for the
                longest utterance that the net was trained on, if it is one that must be cut.
            runtime: ``sparse`` for packed weights, ``torch`` for the net of training, ``auto`` for
                packed weights where the kernels know the net.

        Raises:
            OmnisparseError: If the directory is not a whole and valid model, or has no sizes, or
                its net needs torch and that is not installed.
            ValueError: If the nested file has no model of ``size``.
            OSError: If its files cannot be read.
        """
        # Through the public API, because this room must not import the room of runs.
        import omnisparse

        if runtime != "torch":
            files = omnisparse.open_model(path, size=size)
            why = needs_torch(files.model)
            if why is None:
                return cls.from_files(files, cut_above=cut_above)
            if runtime == "sparse":
                raise OmnisparseError(f"{path}: {why} has no sparse kernels; take runtime torch")
            require_torch(f"{path}: {why}")
        require_torch(f"{path}: runtime torch")
        loaded = omnisparse.load_model(path, size=size)
        return cls(
            loaded.model,
            loaded.tokenizer,
            loaded.extractor.by(native_log_mel),
            cut_above=loaded.cut_above if cut_above is None else cut_above or None,
            trained_seconds=loaded.trained_seconds,
        )

    @classmethod
    def from_files(cls, files: PackedModel, *, cut_above: float | None = None) -> Recognizer:
        """Packs the weights of an LSTM transducer or LAS.

        Args:
            files: The model.
            cut_above: As of :meth:`from_path`.

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
        if cut_above is None:
            streams = model["kind"] == "transducer" and not extractor.per_utterance
            cut_above = cut_length(files.trained_seconds, streams=streams)
        return cls(
            build_engine(files),
            tokenizer,
            extractor.by(native_log_mel),
            cut_above=cut_above or None,
            trained_seconds=files.trained_seconds,
        )

    @property
    def streams(self) -> bool:
        """Whether it recognises audio while it arrives, and so audio of any length."""
        return self.engine.kind == "transducer" and not self.extractor.per_utterance

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

        One longer than ``cut_above`` is cut at pauses first, by the rule of
        :mod:`omnisparse.data.pauses`, and the words of its pieces are joined.

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
        rate = self.extractor.sampling_rate
        seconds = len(samples) / rate
        if seconds > LONG_SECONDS and self.streams and self.cut_above is None:
            stream = self.stream(beam=beam)
            step = round(_LONG_CHUNK_SECONDS * rate)
            for first in range(0, len(samples), step):
                stream.accept(samples[first : first + step])
            return stream.finish()
        start = time.perf_counter()
        pieces = [(0, len(samples))]
        if self.cut_above is not None:
            pieces = cut_at_pauses(samples, rate, self.cut_above)
        texts: list[str] = []
        words: list[Word] = []
        for first, last in pieces:
            found = self.engine.recognise(self.extractor(samples[first:last]), beam=beam)
            texts.append(self.tokenizer.decode([item.token for item in found]))
            late = first / rate
            words += [
                replace(word, start=word.start + late, end=word.end + late)
                for word in self.words(found) or ()
            ]
        return Transcript(
            text=" ".join(text for text in texts if text),
            audio_seconds=seconds,
            seconds=time.perf_counter() - start,
            words=tuple(words) if self.engine.tells_times else None,
            pieces=len(pieces),
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
            stream.push(chunk, name)
            if on_partial is not None:
                on_partial(stream.text)
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
        check_samples(samples, name)
        check_duration(len(samples) / rate, name)
        return StreamingResampler(rate, target).accept(samples.astype(np.float32), final=True)
