"""The LSTM transducer on packed weights: greedy and beam search of one recording, chunk by chunk.

Legend: K hypotheses, T frames, J joiner, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from omnisparse.deploy.encoder import LstmEncoder
from omnisparse.deploy.greedy import (
    CompiledGreedy,
    CompiledTransducer,
    Greedy,
    Memory,
    TransducerNet,
    log_softmax,
)
from omnisparse.deploy.layers import FloatArray, LayerNorm, Linear, Lstm, WeightReader
from omnisparse.deploy.stacked_encoder import StackedLstmEncoder
from omnisparse.deploy.tokens import BLANK, NO_FINITE_SCORE, SOS_EOS, FoundToken
from omnisparse.errors import FormatError, OmnisparseError

MAX_SYMBOLS_PER_FRAME = 5
"""Tokens that one encoder frame may emit, where the net does not say."""


def max_symbols_of(model: Mapping[str, Any]) -> int:
    """How many tokens a frame of this net may emit, at least 1.

    Raises:
        FormatError: If its configuration says less, or more than 2 ** 31 - 1.
    """
    number = int(model.get("max_symbols_per_frame", MAX_SYMBOLS_PER_FRAME))
    if not 1 <= number < 2**31:
        raise FormatError(f"max_symbols_per_frame is {number}; it must be from 1 to {2**31 - 1}")
    return number


class LstmPredictor:
    """Embedding and LSTM layers over the tokens so far; see the training's ``LstmPredictor``."""

    def __init__(self, reader: WeightReader, model: Mapping[str, Any]) -> None:
        embedding, dim = int(model["embedding_dim"]), int(model["predictor_dim"])
        projection = model.get("predictor_projection")
        self.output_dim = int(projection or dim)
        has_norms = model["layer_norm"] and model.get("family") != "nemo"
        self.embedding = reader.table("predictor.embedding.weight", model["vocab_size"], embedding)
        self.layers: list[Lstm] = []
        self.norms: list[LayerNorm | None] = []
        self.context: Linear | None = None
        for index in range(int(model["predictor_layers"])):
            width = self.output_dim if index else embedding
            self.layers.append(Lstm(reader, f"predictor.layers.{index}", width, dim, projection))
            norm = f"predictor.norms.{index}"
            self.norms.append(LayerNorm(reader, norm, self.output_dim) if has_norms else None)

    def initial_memory(self) -> Memory:
        """The state of one hypothesis before the start symbol."""
        return tuple(part for layer in self.layers for part in layer.zero_state(1))

    def step(self, tokens: npt.NDArray[np.int64], memory: Memory) -> tuple[FloatArray, Memory]:
        """``[K, D]`` outputs after ``[K]`` tokens, and the next state."""
        outputs, after = self.embedding(tokens), list[FloatArray]()
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            outputs, state = layer.step(outputs, (memory[2 * index], memory[2 * index + 1]))
            outputs = outputs if norm is None else norm(outputs)
            after += state
        return outputs, tuple(after)


class StatelessPredictor:
    """The last two tokens; see the training's ``StatelessPredictor``."""

    def __init__(self, reader: WeightReader, model: Mapping[str, Any]) -> None:
        embedding, dim = int(model["embedding_dim"]), int(model["predictor_dim"])
        self.output_dim = dim
        self.layers: list[Lstm] = []
        self.norms: list[LayerNorm | None] = []
        self.embedding = reader.table("predictor.embedding.weight", model["vocab_size"], embedding)
        self._context = Linear(reader, "predictor.context", 2 * embedding, dim, bias=True)
        self.context: Linear | None = self._context

    def initial_memory(self) -> Memory:
        """The state of one hypothesis before the start symbol."""
        return (np.full((1, 2), BLANK, np.int64),)

    def step(self, tokens: npt.NDArray[np.int64], memory: Memory) -> tuple[FloatArray, Memory]:
        """``[K, D]`` outputs after ``[K]`` tokens, and the next state."""
        context = np.concatenate([memory[0][:, 1:], tokens[:, None]], axis=1)
        embedded = self.embedding(context).reshape(len(tokens), -1)
        return np.maximum(self._context(embedded), 0), (context,)


class Transducer:
    """An LSTM transducer that recognises one recording at a time.

    Args:
        reader: Has the weights.
        model: Configuration of the net.
    """

    kind = "transducer"
    tells_times = True
    num_bytes = 0
    """Bytes of its packed weights."""
    kinds: Mapping[str, str] = {}
    """How each matrix is packed."""

    def __init__(self, reader: WeightReader, model: Mapping[str, Any]) -> None:
        is_nemos = model.get("family") == "nemo"
        self.encoder = (StackedLstmEncoder if is_nemos else LstmEncoder)(reader, model)
        self.time_reduction = self.encoder.time_reduction
        self.max_symbols = max_symbols_of(model)
        stateless = not model["predictor_layers"]
        self._predictor = (StatelessPredictor if stateless else LstmPredictor)(reader, model)
        dim = int(model["joiner_dim"])
        self._from_encoder = Linear(
            reader, "joiner.encoder_projection", self.encoder.output_dim, dim, bias=True
        )
        self._from_predictor = Linear(
            reader, "joiner.predictor_projection", self._predictor.output_dim, dim, bias=False
        )
        self._is_relu = is_nemos
        self._output = Linear(reader, "joiner.output", dim, int(model["vocab_size"]), bias=True)
        reader.skip("ctc_output.")
        self._compiled = CompiledTransducer.of(
            self._predictor, self._from_predictor, self._output,
            is_relu=is_nemos, max_symbols=self.max_symbols,
        )  # fmt: skip

    def recognise(self, features: FloatArray, *, beam: int) -> list[FoundToken]:
        """The tokens of a whole recording of ``[T, F]`` features."""
        stream = self.stream(beam=beam)
        stream.accept(features, final=True)
        return stream.found

    def stream(self, *, beam: int) -> TransducerStream:
        """Starts a recording that arrives piece by piece."""
        if beam > 1 or self._compiled is None:
            return TransducerStream(self, beam=beam)
        return TransducerStream(
            self, beam=beam, search=CompiledGreedy(self._compiled, *self._start)
        )

    @cached_property
    def _start(self) -> tuple[FloatArray, Memory]:
        return self.predict(np.array([BLANK]), self._predictor.initial_memory())

    def project(self, encoded: FloatArray) -> FloatArray:
        """``[T, J]`` of ``[T, D]`` encoder frames."""
        return self._from_encoder(encoded)

    def start(self) -> tuple[FloatArray, Memory]:
        """What the predictor says before the first token."""
        return self._start

    def predict(self, tokens: npt.NDArray[np.int64], memory: Memory) -> tuple[FloatArray, Memory]:
        """``[K, J]`` after ``[K]`` tokens, and the next state."""
        outputs, memory = self._predictor.step(tokens, memory)
        return self._from_predictor(outputs), memory

    def score(self, total: FloatArray) -> FloatArray:
        """``[K, V]`` logits of sums ``[K, J]``."""
        return self._output(np.maximum(total, 0) if self._is_relu else np.tanh(total))


class TransducerStream:
    """One recording on its way through a transducer.

    Args:
        net: The transducer.
        beam: Hypotheses kept; 1 is greedy.
        search: The search itself; None for one that asks the net step by step.
    """

    def __init__(
        self, net: TransducerNet, *, beam: int, search: CompiledGreedy | None = None
    ) -> None:
        self._net = net
        self._memory = net.encoder.initial_memory()
        self._search = search or (Greedy(net) if beam == 1 else _Beam(net, beam))
        self.num_frames = 0

    @property
    def found(self) -> list[FoundToken]:
        """All tokens so far; with a beam, later frames may change the newest."""
        return self._search.found

    def accept(self, features: FloatArray, *, final: bool) -> None:
        """Takes the next ``[T, F]`` features, T may be 0.

        Raises:
            OmnisparseError: If the net's scores are no numbers.
        """
        encoded, self._memory = self._net.encoder.advance(features, self._memory, final=final)
        if len(encoded):
            self._search.advance(self._net.project(encoded), self.num_frames)
            self.num_frames += len(encoded)


@dataclass(frozen=True)
class _Hypothesis:
    """Tokens that may have been said, and where the predictor stands after them."""

    found: tuple[FoundToken, ...]
    key: tuple[int, ...]
    score: float
    predicted: FloatArray
    memory: Memory


class _Beam:
    """Time-synchronous beam search; the torch search of training says what it does."""

    def __init__(self, net: TransducerNet, beam: int) -> None:
        self._net, self._beam = net, beam
        predicted, memory = net.start()
        self._best = [_Hypothesis((), (), 0.0, predicted, memory)]
        self._settled: list[FoundToken] = []

    @property
    def found(self) -> list[FoundToken]:
        """The most probable tokens so far."""
        return [*self._settled, *self._best[0].found]

    def advance(self, frames: FloatArray, first: int) -> None:
        """Searches ``[T, J]`` projected frames, of which the first has the given number."""
        for time, frame in enumerate(frames):
            running, ended = self._best, list[_Hypothesis]()
            for symbol in range(self._net.max_symbols + 1):
                predicted = np.concatenate([hypothesis.predicted for hypothesis in running])
                log_probs = log_softmax(self._net.score(frame + predicted))
                blanks = log_probs[:, BLANK].tolist()
                closed = [
                    replace(hypothesis, score=hypothesis.score + blank)
                    for hypothesis, blank in zip(running, blanks, strict=True)
                ]
                ended = self._merge(ended + closed)
                if symbol == self._net.max_symbols:
                    break
                limit = ended[-1].score if len(ended) == self._beam else -math.inf
                running = self._expand(running, log_probs, limit, first + time)
                if not running:
                    break
            if not ended:
                raise OmnisparseError(NO_FINITE_SCORE)
            self._best = ended
        self._settle()

    def _merge(self, hypotheses: list[_Hypothesis]) -> list[_Hypothesis]:
        """The best, those with equal tokens added up; none with a score that is no number."""
        merged: dict[tuple[int, ...], _Hypothesis] = {}
        for hypothesis in hypotheses:
            other = merged.get(hypothesis.key)
            if other is not None:
                better = max(other, hypothesis, key=lambda item: item.score)
                total = float(np.logaddexp(other.score, hypothesis.score))
                hypothesis = replace(better, score=total)
            if hypothesis.score > -math.inf:  # NaN is not
                merged[hypothesis.key] = hypothesis
        ranked = sorted(merged.values(), key=lambda item: -item.score)
        return ranked[: self._beam]

    def _expand(
        self, running: list[_Hypothesis], log_probs: FloatArray, limit: float, frame: int
    ) -> list[_Hypothesis]:
        """The best continuations by a token that score above ``limit``."""
        scores = np.array([hypothesis.score for hypothesis in running], np.float32)
        totals = scores[:, None] + log_probs
        totals[:, [BLANK, SOS_EOS]] = -np.inf
        flat = totals.reshape(-1)
        count = min(self._beam, flat.size)
        best = np.argpartition(-flat, count - 1)[:count]
        chosen = [int(index) for index in best[np.argsort(-flat[best])] if flat[index] > limit]
        if not chosen:
            return []
        parents, tokens = np.divmod(np.array(chosen), log_probs.shape[1])
        memory = tuple(
            np.concatenate([running[parent].memory[part] for parent in parents])
            for part in range(len(running[0].memory))
        )
        predicted, memory = self._net.predict(tokens, memory)
        return [
            _Hypothesis(
                (
                    *running[parent].found,
                    FoundToken(int(token), frame, float(log_probs[parent, token])),
                ),
                (*running[parent].key, int(token)),
                float(flat[index]),
                predicted[place : place + 1],
                tuple(part[place : place + 1] for part in memory),
            )
            for place, (index, parent, token) in enumerate(
                zip(chosen, parents.tolist(), tokens.tolist(), strict=True)
            )
        ]

    def _settle(self) -> None:
        """Takes out what all hypotheses begin with: nothing can change it any more."""
        shortest = min(len(hypothesis.key) for hypothesis in self._best)
        first = self._best[0].key
        common = 0
        while common < shortest and all(h.key[common] == first[common] for h in self._best):
            common += 1
        if common:
            self._settled += self._best[0].found[:common]
            self._best = [
                replace(h, found=h.found[common:], key=h.key[common:]) for h in self._best
            ]
