"""Recognises audio while it arrives: features, encoder and search, chunk by chunk.

The words equal those of offline recognition: every frame is computed from the same samples, and the
states of the encoder and the search are kept between chunks. Memory does not grow with the
recording, except for the tokens found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnisparse.models.transducer import TransducerModel
from omnisparse.models.transducer_decoding import (
    GreedyState,
    advance_beam,
    ranked_hypotheses,
    settle_beam,
    start_beam,
    transducer_greedy_search,
)

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor, FloatArray


class StreamingFeatures:
    """Features of a growing recording; joined, they equal the features of the whole recording.

    Args:
        extractor: Computes the frames.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
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
        model: A transducer in eval mode.
        extractor: Its features.
        beam: Hypotheses kept while decoding; 1 is greedy.

    Raises:
        ValueError: If the model cannot stream, or ``beam`` is below 1.
    """

    def __init__(self, model: Any, extractor: FeatureExtractor, *, beam: int = 1) -> None:
        if not isinstance(model, TransducerModel):
            raise ValueError(
                f"a {model.kind} model cannot stream: its attention needs the whole utterance; "
                "recognise offline, or use a transducer"
            )
        if beam < 1:
            raise ValueError(f"beam: expected at least 1, got {beam}")
        self.model = model
        self.features = StreamingFeatures(extractor)
        self._has_ended = False
        self._device = next(model.parameters()).device
        self._encoder_state = model.initial_state(1)
        with torch.inference_mode():
            self._search: _BeamSearch | _GreedySearch = (
                _BeamSearch(model, beam) if beam > 1 else _GreedySearch(model)
            )

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
        if len(frames) == 0 and not final:
            return self._search.tokens
        with torch.inference_mode():
            chunk = torch.from_numpy(frames)[None].to(self._device)
            encoded, self._encoder_state = self.model.encode_chunk(
                chunk, self._encoder_state, final=final
            )
            if encoded.size(1) > 0:
                self._search.advance(encoded)
        return self._search.tokens


class _GreedySearch:
    """Greedy search of one stream."""

    def __init__(self, model: TransducerModel) -> None:
        self.model = model
        self.tokens: list[int] = []
        self._state: GreedyState | None = None

    def advance(self, encoded: torch.Tensor) -> None:
        """Searches ``[1, T', D]`` frames."""
        lengths = torch.tensor([encoded.size(1)], device=encoded.device)
        (found,), self._state = transducer_greedy_search(self.model, encoded, lengths, self._state)
        self.tokens = self.tokens + found


class _BeamSearch:
    """Beam search of one stream."""

    def __init__(self, model: TransducerModel, beam: int) -> None:
        self.model = model
        self.tokens: list[int] = []
        self._settled: list[int] = []
        self._state = start_beam(model, 1, beam)

    def advance(self, encoded: torch.Tensor) -> None:
        """Searches ``[1, T', D]`` frames."""
        lengths = torch.tensor([encoded.size(1)], device=encoded.device)
        found = advance_beam(self.model, encoded, lengths, self._state)
        settled, self._state = settle_beam(found)
        self._settled = self._settled + settled
        self.tokens = self._settled + ranked_hypotheses(self._state)[0].tokens
