"""One recording on its way through a recogniser."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnisparse.data.resampling import StreamingResampler
from omnisparse.deploy.recording import (
    check_samples,
)
from omnisparse.deploy.streaming import EndpointRules, StreamingSession
from omnisparse.deploy.tokens import Word
from omnisparse.deploy.transcript import Transcript

if TYPE_CHECKING:
    from omnisparse.data.tokenizer import Tokenizer

FloatArray = npt.NDArray[np.float32]


class RecognizerStream:
    """One recording on its way through a recogniser; from :meth:`Recognizer.stream`.

    Memory does not grow with the recording, but for its text.

    Args:
        recognizer: The recogniser.
        beam: Hypotheses kept while decoding; 1 is greedy.
        sampling_rate: Rate of the samples in Hz.
    """

    def __init__(self, recognizer: Any, *, beam: int, sampling_rate: int) -> None:
        self._extractor = recognizer.extractor
        self._tokenizer: Tokenizer = recognizer.tokenizer
        self._rate = sampling_rate
        self._resampler = StreamingResampler(sampling_rate, self._extractor.sampling_rate)
        self._recognizer = recognizer
        self._session = StreamingSession(recognizer.engine, self._extractor, beam=beam)
        self._tokens: list[int] = []
        self._told: tuple[list[int], str] = [], ""
        self._num_samples = 0
        self._seconds = 0.0
        self._utterance_frame = 0
        self._utterance_token = 0
        self._newest = (0, 0)  # tokens so far, and encoder frames when the newest came

    @property
    def text(self) -> str:
        """What is recognised so far."""
        if self._told[0] != self._tokens:
            self._told = self._tokens, self._tokenizer.decode(self._tokens)
        return self._told[1]

    @property
    def audio_seconds(self) -> float:
        """Audio taken so far."""
        return self._num_samples / self._rate

    @property
    def words(self) -> tuple[Word, ...] | None:
        """The words so far; with a beam, later samples may change the newest."""
        found: tuple[Word, ...] | None = self._recognizer.words(self._session.found)
        return found

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
        self.push(samples, "samples")
        return self.text

    def push(self, samples: FloatArray, name: str) -> None:
        """As :meth:`accept`, without spelling what is recognised; a bad one is told of ``name``."""
        check_samples(samples, name)
        self._take(samples.astype(np.float32), final=False)

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
