"""Recognises audio while it arrives: features, encoder and greedy search, chunk by chunk.

The words are those of offline recognition: every frame is computed from the same samples, and the
states of the encoder and the search are carried from chunk to chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnisparse.models.transducer import TransducerModel
from omnisparse.models.transducer_decoding import GreedyState, transducer_greedy_search

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor, FloatArray

CHUNK_SECONDS = 0.32
"""Audio handed over at once where a whole recording is streamed."""


class StreamingFeatures:
    """Features of a growing recording; joined, they are the extractor's features of the whole.

    Args:
        extractor: Computes the frames.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self._shift = extractor.sampling_rate // 100
        self._samples = np.zeros(0, dtype=np.float32)
        self._num_dropped = 0  # whole frames of samples let go from the front of the buffer
        self._num_frames = 0  # frames already given out
        self._total = 0

    def accept(self, samples: FloatArray, *, final: bool = False) -> FloatArray:
        """Takes the next samples and gives the features that are certain by now.

        Args:
            samples: [N] float32 in [-1, 1], N may be 0.
            final: Whether the recording ends with them.

        Returns:
            [T, input_dim] float32, T possibly 0.
        """
        extractor = self.extractor
        self._total += len(samples)
        self._samples = np.concatenate([self._samples, samples.astype(np.float32)])
        # The newest frame's window reaches beyond its own shift: it waits for one more.
        ready = extractor.num_frames(self._total) if final else self._total // self._shift - 1
        ready -= self._num_frames
        if not final:
            ready -= ready % extractor.stack  # only whole stacks go out before the end
        if ready < 1:
            return np.zeros((0, extractor.input_dim), dtype=np.float32)
        skip = self._num_frames - self._num_dropped
        frames = extractor.fbank(self._samples)[skip : skip + ready]
        self._num_frames += ready
        # The next window reaches back into one frame; the second keeps the last buffer longer than
        # a window, which the edges are computed from.
        keep_from = max(0, self._num_frames - 2)
        self._samples = self._samples[(keep_from - self._num_dropped) * self._shift :]
        self._num_dropped = keep_from
        return extractor.stack_frames(extractor.normalise(frames))


class StreamingSession:
    """One stream through a transducer; make a new one for each recording.

    Args:
        model: A transducer in eval mode.
        extractor: Its features.

    Raises:
        ValueError: If the model cannot stream.
    """

    def __init__(self, model: Any, extractor: FeatureExtractor) -> None:
        if not isinstance(model, TransducerModel):
            raise ValueError(
                f"a {model.kind} model cannot stream: its attention needs the whole utterance; "
                "recognise offline, or use a transducer"
            )
        self.model = model
        self.features = StreamingFeatures(extractor)
        self.tokens: list[int] = []
        self._device = next(model.parameters()).device
        self._encoder_state = model.initial_state(1)
        self._search_state: GreedyState | None = None

    def accept(self, samples: FloatArray, *, final: bool = False) -> list[int]:
        """Takes the next samples.

        Args:
            samples: [N] float32 in [-1, 1] at the extractor's rate, N may be 0.
            final: Whether the recording ends with them.

        Returns:
            All token ids found so far.
        """
        frames = self.features.accept(samples, final=final)
        if len(frames) == 0 and not final:
            return self.tokens
        with torch.inference_mode():
            chunk = torch.from_numpy(frames)[None].to(self._device)
            encoded, self._encoder_state = self.model.encode_chunk(
                chunk, self._encoder_state, final=final
            )
            lengths = torch.tensor([encoded.size(1)], device=self._device)
            (found,), self._search_state = transducer_greedy_search(
                self.model, encoded, lengths, self._search_state
            )
        self.tokens.extend(found)
        return self.tokens


def stream(
    model: Any,
    extractor: FeatureExtractor,
    samples: FloatArray,
    *,
    chunk_seconds: float = CHUNK_SECONDS,
) -> list[int]:
    """Recognises a whole recording as if it arrived chunk by chunk.

    Args:
        model: A transducer in eval mode.
        extractor: Its features.
        samples: [N] float32 in [-1, 1] at the extractor's rate.
        chunk_seconds: Audio of a chunk, in seconds.

    Raises:
        ValueError: If the model cannot stream, or a chunk holds no sample.
    """
    step = round(chunk_seconds * extractor.sampling_rate)
    if step < 1:
        raise ValueError(f"chunk_seconds: expected at least one sample, got {chunk_seconds}")
    session = StreamingSession(model, extractor)
    for start in range(0, len(samples), step):
        session.accept(samples[start : start + step])
    return session.accept(samples[:0], final=True)
