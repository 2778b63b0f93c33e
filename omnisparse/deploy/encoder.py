"""The streaming LSTM encoder on packed weights; a whole recording is one long chunk.

Legend: T frames, F features, D output width, M floats of the memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from omnisparse.deploy.layers import FloatArray, LayerNorm, Lstm, WeightReader, layer_struct
from omnisparse.deploy.native import LayerStruct, kernels
from omnisparse.deploy.sparse_kernels import LANES
from omnisparse.errors import FormatError


class EncoderMemory(NamedTuple):
    """What is carried from chunk to chunk; never changed in place."""

    floats: FloatArray
    """``[M]``: of each layer its output and cell, and where it halves the frame rate a frame that
    waits for its partner."""

    waiting: npt.NDArray[np.int64]
    """Of each layer, 1 where a frame waits."""


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
        width = self._widest = int(model["input_dim"])
        for index in range(num_layers):
            self._layers.append(Lstm(reader, f"encoder.layers.{index}", width, dim, projection))
            norm = f"encoder.norms.{index}"
            self._norms.append(
                LayerNorm(reader, norm, self.output_dim) if model["layer_norm"] else None
            )
            width = self.output_dim * (2 if index < self._halvings else 1)
        self._dim = dim
        self._widest = max(self._widest, 2 * self.output_dim)
        self._structs = (LayerStruct * num_layers)(
            *(
                layer_struct(layer, norm, halves=index < self._halvings)
                for index, (layer, norm) in enumerate(
                    zip(self._layers, self._norms, strict=True)
                )
            )
        )  # fmt: skip
        self._work = max(LANES * max(layer.input.width for layer in self._layers), dim)

    def initial_memory(self) -> EncoderMemory:
        """The memory before the first chunk."""
        size = len(self._layers) * (self.output_dim + self._dim) + self._halvings * self.output_dim
        return EncoderMemory(np.zeros(size, np.float32), np.zeros(len(self._layers), np.int64))

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
        library, _ = kernels()
        floats, waiting = memory.floats.copy(), memory.waiting.copy()
        if library is None:
            frames = self._advance_by_numpy(features, floats, waiting, final=final)
            return frames, EncoderMemory(floats, waiting)
        steps, width = features.shape
        room = (steps + 1) * self._widest
        sizes = (room, room, (steps + 1) * 4 * self._dim, self._work if steps > 3 else self._dim)
        work = np.empty(sum(sizes), np.float32)
        work[: steps * width] = features.reshape(-1)
        start = work.ctypes.data
        places = [start]
        for size in sizes[:-1]:
            places.append(places[-1] + 4 * size)
        x, y, gates, more = places
        count = library.omni_encoder(
            ctypes.addressof(self._structs), len(self._layers), steps, final, x, y,
            floats.ctypes.data, waiting.ctypes.data, gates, more,
        )  # fmt: skip
        frames = work[: count * self.output_dim].reshape(count, self.output_dim).copy()
        return frames, EncoderMemory(floats, waiting)

    def _advance_by_numpy(
        self, frames: FloatArray, floats: FloatArray, waiting: npt.NDArray[np.int64], *, final: bool
    ) -> FloatArray:
        """The same without kernels; changes the memory that it is given."""
        out, at = self.output_dim, 0
        for index, (layer, norm) in enumerate(zip(self._layers, self._norms, strict=True)):
            hidden, cell = floats[at : at + out], floats[at + out : at + out + self._dim]
            at += out + self._dim
            if len(frames) == 0:
                frames = np.zeros((0, out), np.float32)
            else:
                frames, state = layer.run(frames, (hidden[None], cell[None]))
                hidden[:], cell[:] = state[0][0], state[1][0]
                frames = frames if norm is None else norm(frames)
            if index < self._halvings:
                pending = floats[at : at + out]
                at += out
                if waiting[index]:
                    frames = np.concatenate([pending[None], frames])
                if final and len(frames) % 2:
                    frames = np.concatenate([frames, np.zeros_like(frames[:1])])
                waiting[index] = len(frames) % 2
                if waiting[index]:
                    pending[:] = frames[-1]
                frames = frames[: len(frames) // 2 * 2].reshape(-1, 2 * out)
        return frames
