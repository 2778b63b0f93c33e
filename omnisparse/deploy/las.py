"""Listen, attend and spell on packed weights: greedy and beam search of one recording.

Legend: K hypotheses, T' encoder frames, A attention width, S heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from omnisparse.deploy.alignment import ctc_alignment
from omnisparse.deploy.encoder import LstmEncoder
from omnisparse.deploy.greedy import log_softmax
from omnisparse.deploy.layers import FloatArray, Linear, Lstm, State, WeightReader
from omnisparse.deploy.tokens import BLANK, NO_FINITE_SCORE, SOS_EOS, FoundToken
from omnisparse.errors import FormatError, OmnisparseError

LENGTH_MARGIN = 8
"""Tokens a hypothesis may have beyond the number of its encoder frames."""

HOPELESS_NATS = 12.0
"""Hypotheses so far below the best ended one in log-probability are not pursued."""

LENGTH_EXPONENT = 0.6
"""Of the length penalty by which a beam ranks what has ended."""


class _Memory(NamedTuple):
    """The projected encoder frames."""

    keys: FloatArray
    """``[S, A / S, T']``, for dot products scaled by ``sqrt(S / A)``."""

    values: FloatArray
    """``[S, T', A / S]``."""


class _Spelling(NamedTuple):
    """State of K hypotheses."""

    layers: list[State]
    """One for each layer of the decoder."""

    context: FloatArray
    """``[K, A]`` context of the last step, 0 where no layer reads it."""

    def select(self, rows: npt.NDArray[np.int64]) -> _Spelling:
        """The states of some hypotheses."""
        layers = [(hidden[rows], cell[rows]) for hidden, cell in self.layers]
        return _Spelling(layers, self.context[rows])


class Las:
    """A LAS net that recognises one recording at a time.

    Args:
        reader: Has the weights.
        model: Configuration of the net.

    Raises:
        FormatError: If weights and configuration do not fit.
    """

    kind = "las"
    tells_times = True
    num_bytes = 0
    """Bytes of its packed weights."""
    kinds: Mapping[str, str] = {}
    """How each matrix is packed."""

    def __init__(self, reader: WeightReader, model: Mapping[str, Any]) -> None:
        self.encoder = LstmEncoder(reader, model)
        self.time_reduction = self.encoder.time_reduction
        self._heads, self._dim = int(model["attention_heads"]), int(model["attention_dim"])
        if self._heads < 1 or self._dim % self._heads:
            raise FormatError(f"attention_dim {self._dim} with {self._heads} attention_heads")
        projection, dim = model["decoder_projection"], int(model["decoder_dim"])
        width, vocab_size = int(projection or dim), int(model["vocab_size"])
        embedding = int(model["embedding_dim"])
        self._embedding = reader.table("decoder.embedding.weight", vocab_size, embedding)
        # Files of before these keys have a first layer that reads labels alone, and dot products.
        self._feeds_context = model.get("context_input", "upper_layers") == "first_layer"
        reads_context = 0 if self._feeds_context else 1
        self._layers = []
        for index in range(int(model["decoder_layers"])):
            inputs = (width if index else embedding) + (self._dim if index == reads_context else 0)
            self._layers.append(Lstm(reader, f"decoder.layers.{index}", inputs, dim, projection))
        encoded = self.encoder.output_dim
        self._query = Linear(reader, "attention.query", width, self._dim, bias=True)
        self._key = Linear(reader, "attention.key", encoded, self._dim, bias=False)
        self._value = Linear(reader, "attention.value", encoded, self._dim, bias=True)
        self._score = None
        if model.get("attention", "dot") == "additive":
            score = reader.vector("attention.score", self._dim)
            self._score = score.reshape(self._heads, 1, -1, 1)
        self._output = Linear(reader, "output", width + self._dim, vocab_size, bias=True)
        self._ctc = None
        if reader.has("ctc_output.weight"):
            self._ctc = Linear(reader, "ctc_output", encoded, vocab_size, bias=True)

    def recognise(self, features: FloatArray, *, beam: int) -> list[FoundToken]:
        """The tokens of a whole recording of ``[T, F]`` features.

        Raises:
            OmnisparseError: If the net's scores are no numbers.
        """
        encoded, _ = self.encoder.advance(features, self.encoder.initial_memory(), final=True)
        if not len(encoded):
            return []
        scale = 1.0 if self._score is not None else (self._heads / self._dim) ** 0.5
        keys = self._split(self._key(encoded)).transpose(0, 2, 1) * np.float32(scale)
        memory = _Memory(np.ascontiguousarray(keys), self._split(self._value(encoded)))
        limit = len(encoded) + LENGTH_MARGIN
        found = self._greedy(memory, limit) if beam == 1 else self._beam(memory, limit, beam)
        return self._timed(found, encoded)

    def _timed(self, found: list[FoundToken], encoded: FloatArray) -> list[FoundToken]:
        """The tokens in the frames where CTC hears them, if the net has it."""
        if self._ctc is None:
            return found
        tokens = [item.token for item in found]
        frames = ctc_alignment(log_softmax(self._ctc(encoded)), tokens)
        if frames is None:
            return found
        return [item._replace(frame=frame) for item, frame in zip(found, frames, strict=True)]

    def stream(self, *, beam: int) -> NoReturn:
        """Attention needs the whole recording.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a las model cannot stream")

    def _split(self, projected: FloatArray) -> FloatArray:
        """``[N, A]`` to ``[S, N, A / S]``."""
        return np.ascontiguousarray(
            projected.reshape(len(projected), self._heads, -1).transpose(1, 0, 2)
        )

    def _begin(self) -> _Spelling:
        """The state before the first token."""
        context = np.zeros((1, self._dim), np.float32)
        return _Spelling([layer.zero_state(1) for layer in self._layers], context)

    def _attend(self, output: FloatArray, memory: _Memory) -> tuple[FloatArray, FloatArray]:
        """``[K, A]`` contexts of ``[K, D]`` outputs, and ``[S, K, T']`` weights of the frames."""
        queries = self._split(self._query(output))
        if self._score is None:
            scores = np.matmul(queries, memory.keys)
        else:
            sums = np.tanh(queries[:, :, :, None] + memory.keys[:, None])
            scores = (sums * self._score).sum(axis=2)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        context = np.matmul(weights, memory.values).transpose(1, 0, 2).reshape(len(output), -1)
        return context, weights

    def _step(
        self, tokens: npt.NDArray[np.int64], state: _Spelling, memory: _Memory
    ) -> tuple[FloatArray, _Spelling, FloatArray]:
        """One token of K hypotheses.

        Returns:
            ``[K, V]`` log-probabilities of the next, the states, and ``[K]`` encoder frames that
            the attention looked at on average.
        """
        context = state.context
        inputs = self._embedding(tokens)
        after: list[State] = []
        weights: FloatArray | None = None
        for index, layer in enumerate(self._layers):
            if index == 0 and self._feeds_context:
                inputs = np.concatenate([inputs, context], axis=1)
            output, hidden = layer.step(inputs, state.layers[index])
            after.append(hidden)
            inputs = output
            if index == 0 and not self._feeds_context:
                context, weights = self._attend(output, memory)
                inputs = np.concatenate([output, context], axis=1)
        if weights is None:
            context, weights = self._attend(output, memory)
        logits = self._output(np.concatenate([output, context], axis=1))
        frames = weights.mean(axis=0) @ np.arange(weights.shape[-1], dtype=np.float32)
        log_probs = log_softmax(logits)
        log_probs[:, BLANK] = -np.inf
        return log_probs, _Spelling(after, context), frames

    def _greedy(self, memory: _Memory, limit: int) -> list[FoundToken]:
        state = self._begin()
        found: list[FoundToken] = []
        token = SOS_EOS
        for _ in range(limit):
            log_probs, state, frames = self._step(np.array([token]), state, memory)
            token = int(log_probs[0].argmax())
            best = float(log_probs[0, token])
            if best != best:
                raise OmnisparseError(NO_FINITE_SCORE)
            if token == SOS_EOS:
                break
            found.append(FoundToken(token, float(frames[0]), best))
        return found

    def _beam(self, memory: _Memory, limit: int, beam: int) -> list[FoundToken]:
        state = self._begin()
        previous, scores = np.array([SOS_EOS]), np.zeros(1, np.float32)
        histories: list[tuple[FoundToken, ...]] = [()]
        ended = _Ended(beam)
        for step in range(limit):
            log_probs, state, frames = self._step(previous, state, memory)
            totals = (scores[:, None] + log_probs).reshape(-1)
            count = min(2 * beam, totals.size)
            ranked = np.argsort(-totals, kind="stable")[:count]
            parents, tokens = np.divmod(ranked, log_probs.shape[1])
            for rank in np.flatnonzero(tokens[:beam] == SOS_EOS):
                ended.add(histories[parents[rank]], float(totals[ranked[rank]]))
            runs = np.flatnonzero((tokens != SOS_EOS) & (totals[ranked] > -np.inf))[:beam]
            if not len(runs):
                break
            parents, previous, scores = parents[runs], tokens[runs], totals[ranked[runs]]
            histories = [
                (
                    *histories[parent],
                    FoundToken(int(token), float(frames[parent]), float(log_probs[parent, token])),
                )
                for parent, token in zip(parents, previous, strict=True)
            ]
            state = state.select(parents)
            if ended.is_complete(float(scores[0])):
                break
            if step + 1 == limit and not ended.found:
                for history, score in zip(histories, scores, strict=True):
                    ended.add(history, float(score))
        if not ended.found:
            raise OmnisparseError(NO_FINITE_SCORE)
        return list(ended.found[0][2])


class _Ended:
    """The best hypotheses that have ended.

    Args:
        beam: How many are kept.
    """

    def __init__(self, beam: int) -> None:
        self._beam = beam
        self.found: list[tuple[float, float, tuple[FoundToken, ...]]] = []

    def add(self, history: tuple[FoundToken, ...], score: float) -> None:
        """Takes a hypothesis, and drops the worst if there are too many."""
        if score == score and score > -np.inf:
            penalty = ((5.0 + len(history) + 1) / 6.0) ** LENGTH_EXPONENT
            self.found.append((score / penalty, score, history))
            self.found.sort(key=lambda item: -item[0])
            del self.found[self._beam :]

    def is_complete(self, best_running: float) -> bool:
        """Whether nothing worth having is still running."""
        if len(self.found) >= self._beam:
            return True
        best = max((score for _, score, _ in self.found), default=-np.inf)
        return best_running < best - HOPELESS_NATS
