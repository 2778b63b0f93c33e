"""The greedy search of a transducer, frame by frame: in one compiled call, or by numpy.

Legend: K hypotheses, T frames, J joiner, V vocabulary.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from omnisparse.deploy.layers import (
    Embedding,
    FloatArray,
    LayerNorm,
    Linear,
    Lstm,
    layer_struct,
)
from omnisparse.deploy.native import LayerStruct, TransducerStruct, kernels
from omnisparse.deploy.sparse_kernels import TYPES
from omnisparse.deploy.tokens import BLANK, NO_FINITE_SCORE, SOS_EOS, FoundToken
from omnisparse.errors import OmnisparseError
from omnisparse.sparsity.arrays import dtype_name

LOOK_AHEAD = 8
"""Frames scored together; most of them say blank."""

Memory = tuple[npt.NDArray[Any], ...]
"""State of a predictor, a row for each hypothesis."""


class TransducerNet(Protocol):
    """What a search asks of a transducer, whatever computes it."""

    @property
    def encoder(self) -> TransducerEncoder:
        """The streaming encoder."""
        ...

    @property
    def max_symbols(self) -> int:
        """Tokens that one frame may emit."""
        ...

    def project(self, encoded: FloatArray) -> FloatArray:
        """``[T, J]`` of ``[T, D]`` encoder frames."""
        ...

    def start(self) -> tuple[FloatArray, Memory]:
        """What the predictor says before the first token."""
        ...

    def predict(self, tokens: npt.NDArray[np.int64], memory: Memory) -> tuple[FloatArray, Memory]:
        """``[K, J]`` after ``[K]`` tokens, and the next state."""
        ...

    def score(self, total: FloatArray) -> FloatArray:
        """``[K, V]`` logits of sums ``[K, J]``."""
        ...


class TransducerEncoder(Protocol):
    """What turns features into encoder frames."""

    def initial_memory(self) -> Any:
        """The memory before the first chunk."""
        ...

    def advance(self, features: FloatArray, memory: Any, *, final: bool) -> tuple[FloatArray, Any]:
        """Encode the next chunk."""
        ...


class Greedy:
    """The most probable token at every turn."""

    def __init__(self, net: TransducerNet) -> None:
        self._net = net
        self._predicted, self._memory = net.start()
        self.found: list[FoundToken] = []

    def advance(self, frames: FloatArray, first: int) -> None:
        """Searches ``[T, J]`` projected frames, of which the first has the given number."""
        time = symbols = 0
        while time < len(frames):
            logits = self._net.score(frames[time : time + LOOK_AHEAD] + self._predicted)
            logits[:, SOS_EOS] = -np.inf
            tokens = logits.argmax(axis=1)
            emits = np.flatnonzero(tokens != BLANK)
            until = int(emits[0]) if len(emits) else len(tokens) - 1
            if not (logits[: until + 1].max(axis=1) < np.inf).all():
                raise OmnisparseError(NO_FINITE_SCORE)
            if not len(emits):
                time, symbols = time + len(tokens), 0
                continue
            symbols = symbols + 1 if until == 0 else 1
            time += until
            token = int(tokens[until])
            log_probability = float(log_softmax(logits[until : until + 1])[0, token])
            self.found.append(FoundToken(token, first + time, log_probability))
            self._predicted, self._memory = self._net.predict(np.array([token]), self._memory)
            if symbols == self._net.max_symbols:
                time, symbols = time + 1, 0


class Predictor(Protocol):
    """What the tokens so far say: by LSTM layers, or without any by the last two tokens."""

    output_dim: int
    embedding: Embedding
    layers: list[Lstm]
    norms: list[LayerNorm | None]
    context: Linear | None


@dataclass(frozen=True, eq=False)
class CompiledTransducer:
    """Predictor and joiner as C sees them.

    Attributes:
        struct: For C.
        wide: The largest of cells, outputs and embedding.
        num_work: Floats that C works in.
        parts: What the struct points to.
    """

    struct: TransducerStruct
    wide: int
    num_work: int
    parts: tuple[Any, ...]

    @classmethod
    def of(
        cls, predictor: Predictor, projection: Linear, output: Linear, *, is_relu: bool,
        max_symbols: int,
    ) -> CompiledTransducer | None:  # fmt: skip
        """The parts of a net; None where there are no kernels or the embedding is factored."""
        library, _ = kernels()
        table = predictor.embedding.tensor
        if library is None or predictor.embedding.factor is not None:
            return None
        assert output.bias is not None
        layers = predictor.layers
        structs = (LayerStruct * len(layers))(
            *(layer_struct(*each) for each in zip(layers, predictor.norms, strict=True))
        )
        context = predictor.context
        wide = max(table.shape[1], predictor.output_dim, *(layer.dim for layer in layers))
        struct = TransducerStruct(
            ctypes.addressof(structs) if layers else None,
            None if context is None else context.matrix.pointer,
            None if context is None or context.bias is None else context.bias.ctypes.data,
            table.values.ctypes.data,
            None if table.scale is None else table.scale.ctypes.data,
            projection.matrix.pointer, output.matrix.pointer, output.bias.ctypes.data,
            len(layers), TYPES[dtype_name(table.values)], table.shape[1], is_relu, max_symbols,
        )  # fmt: skip
        num_work = output.matrix.columns + output.matrix.rows + 16 + 9 * wide
        return cls(struct, wide, num_work, (predictor, projection, output, structs))


class CompiledGreedy:
    """:class:`Greedy` in one call for all frames.

    Args:
        net: Predictor and joiner.
        predicted: [1, J], what the predictor says before the first token.
        memory: Its state then.
    """

    def __init__(self, net: CompiledTransducer, predicted: FloatArray, memory: Memory) -> None:
        self._net = net
        self._predicted = predicted.copy()
        is_stateless = net.struct.count == 0
        parts = [part.reshape(-1) for part in memory]
        self._context = parts[0].copy() if is_stateless else np.zeros(2, np.int64)
        self._state = np.zeros(0, np.float32) if is_stateless else np.concatenate(parts)
        self._work = np.empty(net.num_work, np.float32)
        self.found: list[FoundToken] = []

    def advance(self, frames: FloatArray, first: int) -> None:
        """Searches ``[T, J]`` projected frames, of which the first has the given number."""
        library, _ = kernels()
        assert library is not None
        frames = np.ascontiguousarray(frames)
        room = len(frames) + 8
        at = np.zeros(2, np.int64)
        tokens, times = np.empty((2, room), np.int64)
        logs = np.empty(room, np.float32)
        while at[0] < len(frames):
            count = library.omni_greedy(
                ctypes.addressof(self._net.struct), len(frames), frames.ctypes.data, at.ctypes.data,
                self._state.ctypes.data, self._context.ctypes.data, self._predicted.ctypes.data,
                room, self._net.wide, tokens.ctypes.data, times.ctypes.data, logs.ctypes.data,
                self._work.ctypes.data,
            )  # fmt: skip
            if count < 0:
                raise OmnisparseError(NO_FINITE_SCORE)
            self.found += map(
                FoundToken,
                tokens[:count].tolist(), (first + times[:count]).tolist(), logs[:count].tolist(),
            )  # fmt: skip


def log_softmax(logits: FloatArray) -> FloatArray:
    """Log-probabilities of rows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float32)
