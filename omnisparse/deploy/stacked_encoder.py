"""The LSTM encoder of family ``nemo`` on packed weights: frames are joined and projected first.

Legend: T frames, F features, D output width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from omnisparse.deploy.encoder import EncoderMemory, LstmEncoder
from omnisparse.deploy.layers import FloatArray, Linear, WeightReader
from omnisparse.errors import FormatError


class StackedMemory(NamedTuple):
    """What is carried from chunk to chunk; never changed in place."""

    layers: EncoderMemory
    """That of the layers."""

    waiting: FloatArray
    """``[n, F]``: frames that wait for the rest of their stack."""

    has_begun: bool = False
    """Whether a stack was encoded."""


class StackedLstmEncoder:
    """Whole stacks of ``time_reduction`` frames, projected, through LSTM layers.

    What fills no stack at the end is left out, unless there is nothing else.

    Args:
        reader: Has the weights.
        model: Configuration of the net.

    Raises:
        FormatError: If weights and configuration do not fit.
    """

    def __init__(self, reader: WeightReader, model: Mapping[str, Any]) -> None:
        self.time_reduction, self._input_dim = int(model["time_reduction"]), int(model["input_dim"])
        self.output_dim = int(model["encoder_projection"] or model["encoder_dim"])
        if min(self.time_reduction, self._input_dim) < 1:
            raise FormatError(f"time_reduction is {self.time_reduction}")
        self._projection = Linear(
            reader,
            "encoder.input_projection",
            self.time_reduction * self._input_dim,
            self.output_dim,
            bias=True,
        )
        inner = {**model, "input_dim": self.output_dim, "time_reduction": 1}
        self._layers = LstmEncoder(reader, inner)

    def initial_memory(self) -> StackedMemory:
        """The memory before the first chunk."""
        nothing = np.zeros((0, self._input_dim), np.float32)
        return StackedMemory(self._layers.initial_memory(), nothing)

    def advance(
        self, features: FloatArray, memory: StackedMemory, *, final: bool
    ) -> tuple[FloatArray, StackedMemory]:
        """Encode the next chunk; see :meth:`LstmEncoder.advance`."""
        frames, stack = np.concatenate([memory.waiting, features]), self.time_reduction
        if final and not memory.has_begun and 0 < len(frames) < stack:
            frames = np.pad(frames, ((0, stack - len(frames)), (0, 0)))
        whole = len(frames) // stack
        waiting = frames[whole * stack :].copy()
        encoded, layers = np.zeros((0, self.output_dim), np.float32), memory.layers
        if whole:
            joined = frames[: whole * stack].reshape(whole, stack * self._input_dim)
            projected = self._projection(joined)
            encoded, layers = self._layers.advance(projected, layers, final=final)
        return encoded, StackedMemory(layers, waiting, memory.has_begun or whole > 0)
