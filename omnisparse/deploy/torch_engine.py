"""Recognises with a net of training, in torch: for encoders that no kernel here knows.

Such a net tells neither when it heard a token nor how sure it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from omnisparse.deploy.tokens import FoundToken
from omnisparse.models.transducer import TransducerModel
from omnisparse.models.transducer_decoding import (
    GreedyState,
    advance_beam,
    ranked_hypotheses,
    settle_beam,
    start_beam,
    transducer_greedy_search,
)

FloatArray = npt.NDArray[np.float32]


class TorchEngine:
    """A net of training that recognises one recording at a time, on the device it is on.

    Args:
        model: A speech model with ``decode``; put into eval mode.
    """

    tells_times = False

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.kind = str(getattr(model, "kind", "speech"))
        self.time_reduction = 1
        self._device = next(model.parameters()).device

    def recognise(self, features: FloatArray, *, beam: int) -> list[FoundToken]:
        """The tokens of a whole recording of ``[T, F]`` features."""
        chunk = torch.from_numpy(features)[None].to(self._device)
        lengths = torch.tensor([chunk.shape[1]], device=self._device)
        with torch.inference_mode():
            (tokens,) = self.model.decode(chunk, lengths, beam=beam)
        return _untimed(tokens)

    def stream(self, *, beam: int) -> TorchStream:
        """Starts a recording that arrives piece by piece."""
        assert isinstance(self.model, TransducerModel)
        return TorchStream(self.model, beam=beam)


class TorchStream:
    """One recording on its way through a transducer of training.

    Args:
        model: The transducer.
        beam: Hypotheses kept; 1 is greedy.
    """

    def __init__(self, model: TransducerModel, *, beam: int) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._state = model.initial_state(1)
        self.num_frames = 0
        with torch.inference_mode():
            self._search: _BeamSearch | _GreedySearch = (
                _BeamSearch(model, beam) if beam > 1 else _GreedySearch(model)
            )

    @property
    def found(self) -> list[FoundToken]:
        """All tokens so far; with a beam, later frames may change the newest."""
        return _untimed(self._search.tokens)

    def accept(self, features: FloatArray, *, final: bool) -> None:
        """Takes the next ``[T, F]`` features, T may be 0."""
        with torch.inference_mode():
            chunk = torch.from_numpy(features)[None].to(self._device)
            encoded, self._state = self._model.encode_chunk(chunk, self._state, final=final)
            if encoded.size(1) > 0:
                self._search.advance(encoded)
                self.num_frames += encoded.size(1)


def _untimed(tokens: list[int]) -> list[FoundToken]:
    """Tokens of which nothing else is known."""
    return [FoundToken(token, math.nan, math.nan) for token in tokens]


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
