"""Recognises audio while it arrives: features, encoder and search, chunk by chunk.

The words equal those of offline recognition: every frame is computed from the same samples, and the
states of the encoder and the search are kept between chunks. Memory does not grow with the
recording, except for the tokens found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omnisparse.deploy.engine import engine_of
from omnisparse.deploy.tokens import FoundToken
from omnisparse.errors import UsageError

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor, FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointRules:
    """When a stream has come to the end of an utterance; the rules of Kaldi and sherpa.

    Silence is the time since the newest token: a model that hears a word late sees less of it.
    """

    silence: float = 2.4
    """Seconds of silence that end an utterance of which nothing was recognised."""

    silence_after_words: float = 1.2
    """Seconds of silence that end an utterance after its words."""

    longest: float = 20.0
    """Seconds after which any utterance ends."""

    def __post_init__(self) -> None:
        """Check the range of every field."""
        for name in ("silence", "silence_after_words", "longest"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name}: expected seconds above 0, got {getattr(self, name)}")

    def ends(self, *, seconds: float, silence: float, has_words: bool) -> bool:
        """Whether an utterance ends.

        Args:
            seconds: Its duration so far.
            silence: Seconds since its newest token, or since its start.
            has_words: Whether it has a token.
        """
        enough = self.silence_after_words if has_words else self.silence
        return silence >= enough or seconds >= self.longest


class StreamingFeatures:
    """Features of a growing recording; joined, they equal the features of the whole recording.

    Args:
        extractor: Computes the frames.

    Raises:
        UsageError: If they are normalised by the whole utterance.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        if extractor.per_utterance:
            raise UsageError(
                "this model cannot stream: its features are normalised by the whole utterance "
                "(data.features.normalize=utterance); recognise offline"
            )
        self.extractor = extractor
        self._shift = extractor.sampling_rate // 100
        self._samples = np.zeros(0, dtype=np.float32)
        self._num_dropped = 0  # whole frames of samples removed from the front of the buffer
        self._num_frames = 0  # frames already returned
        self._total = 0

    def accept(self, samples: FloatArray, *, final: bool = False) -> FloatArray:
        """Processes the next samples and returns the features that are complete.

        Args:
            samples: [N] float32 in [-1, 1], N may be 0.
            final: Whether the recording ends with them.

        Returns:
            [T, input_dim] float32, T possibly 0.
        """
        extractor = self.extractor
        self._total += len(samples)
        self._samples = np.concatenate([self._samples, samples.astype(np.float32)])
        # The window of the newest frame extends beyond its own shift: it waits for one more frame.
        ready = extractor.num_frames(self._total) if final else self._total // self._shift - 1
        ready -= self._num_frames
        if not final:
            ready -= ready % extractor.stack  # only whole stacks are returned before the end
        if ready < 1:
            return np.zeros((0, extractor.input_dim), dtype=np.float32)
        skip = self._num_frames - self._num_dropped
        frames = extractor.fbank(self._samples)[skip : skip + ready]
        self._num_frames += ready
        # The next window extends back into one frame. The second frame keeps the last buffer longer
        # than a window; the edges are computed from it.
        keep_from = max(0, self._num_frames - 2)
        self._samples = self._samples[(keep_from - self._num_dropped) * self._shift :].copy()
        self._num_dropped = keep_from
        return extractor.stack_frames(extractor.normalise(frames))


class StreamingSession:
    """One stream through a transducer; make a new one for each recording.

    Args:
        model: An engine, or a transducer of training in eval mode.
        extractor: Its features.
        beam: Hypotheses kept while decoding; 1 is greedy.

    Raises:
        ValueError: If the model cannot stream, or ``beam`` is below 1.
    """

    def __init__(self, model: Any, extractor: FeatureExtractor, *, beam: int = 1) -> None:
        engine = engine_of(model)
        if engine.kind != "transducer":
            raise ValueError(
                f"a {engine.kind} model cannot stream: its attention needs the whole utterance; "
                "recognise offline, or use a transducer"
            )
        if beam < 1:
            raise ValueError(f"beam: expected at least 1, got {beam}")
        self.features = StreamingFeatures(extractor)
        self._has_ended = False
        self._stream = engine.stream(beam=beam)

    @property
    def found(self) -> Sequence[FoundToken]:
        """All tokens found so far; with a beam, later samples may change the newest."""
        return self._stream.found

    @property
    def num_frames(self) -> int:
        """Encoder frames searched so far."""
        return self._stream.num_frames

    def check_open(self) -> None:
        """Refuses to continue after the end.

        Raises:
            ValueError: If the recording has ended.
        """
        if self._has_ended:
            raise ValueError("this stream has ended; start a new one for the next recording")

    def accept(self, samples: FloatArray, *, final: bool = False) -> list[int]:
        """Processes the next samples.

        Args:
            samples: [N] float32 in [-1, 1] at the extractor's rate, N may be 0.
            final: Whether the recording ends with them.

        Returns:
            All token ids found so far; with a beam, later samples may change the newest.

        Raises:
            ValueError: If the recording has ended.
        """
        self.check_open()
        self._has_ended = final
        frames = self.features.accept(samples, final=final)
        if len(frames) or final:
            self._stream.accept(frames, final=final)
        return [found.token for found in self._stream.found]
