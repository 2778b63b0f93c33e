"""The streaming LSTM encoder on packed weights; a whole recording is one long chunk.

Legend: T frames, F features, D output width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from omnisparse.deploy.layers import FloatArray, LayerNorm, Lstm, State, WeightReader
from omnisparse.errors import FormatError


class EncoderMemory(NamedTuple):
    """What is carried from chunk to chunk; never changed in place."""

    layers: tuple[State, ...]
    """A state for each layer."""

    pending: tuple[FloatArray, ...]
    """For each halving of the frame rate ``[0 or 1, D]``: a frame that waits for its partner."""


class LstmEncoder:
    """Stacked LSTM layers; after each of the first ones the frame rate may halve.

    Args:
        reader: Has the weights.
        model: Configuration of the net.

    Raises:
        FormatError: If weights and configuration do not fit.
    """

    def __init__(self, reader: WeightReader, model: Mapping[str, Any]) -> None:
        dim, projection = int(model["encoder_dim"]), model["encoder_projection"]
        num_layers, reduction = int(model["encoder_layers"]), int(model["time_reduction"])
        self.time_reduction = reduction
        self._halvings = reduction.bit_length() - 1
        if reduction != 1 << max(0, self._halvings) or self._halvings >= num_layers:
            raise FormatError(f"time_reduction is {reduction} with {num_layers} encoder layers")
        self.output_dim = int(projection or dim)
        self._layers: list[Lstm] = []
        self._norms: list[LayerNorm | None] = []
        width = int(model["input_dim"])
        for index in range(num_layers):
            self._layers.append(Lstm(reader, f"encoder.layers.{index}", width, dim, projection))
            norm = f"encoder.norms.{index}"
            self._norms.append(
                LayerNorm(reader, norm, self.output_dim) if model["layer_norm"] else None
            )
            width = self.output_dim * (2 if index < self._halvings else 1)

    def initial_memory(self) -> EncoderMemory:
        """The memory before the first chunk."""
        nothing = np.zeros((0, self.output_dim), np.float32)
        return EncoderMemory(
            tuple(layer.zero_state(1) for layer in self._layers), (nothing,) * self._halvings
        )

    def advance(
        self, features: FloatArray, memory: EncoderMemory, *, final: bool
    ) -> tuple[FloatArray, EncoderMemory]:
        """Encode the next chunk.

        Args:
            features: ``[T, F]``, T may be 0.
            memory: From :meth:`initial_memory` or the chunk before.
            final: Whether the recording ends here, so that waiting frames are padded and sent.

        Returns:
            ``[T', D]``, T' possibly 0, and the memory for the next chunk.
        """
        frames, states, pending = features, list(memory.layers), list(memory.pending)
        for index, (layer, norm) in enumerate(zip(self._layers, self._norms, strict=True)):
            if len(frames) == 0:
                frames = np.zeros((0, self.output_dim), np.float32)
            else:
                frames, states[index] = layer.run(frames, states[index])
                frames = frames if norm is None else norm(frames)
            if index < self._halvings:
                if len(pending[index]):
                    frames = np.concatenate([pending[index], frames])
                if final and len(frames) % 2:
                    frames = np.concatenate([frames, np.zeros_like(frames[:1])])
                paired = len(frames) // 2 * 2
                pending[index] = frames[paired:].copy()
                frames = frames[:paired].reshape(paired // 2, 2 * self.output_dim)
        return frames, EncoderMemory(tuple(states), tuple(pending))
