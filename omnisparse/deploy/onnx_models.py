"""The parts of a recogniser as ONNX files.

A transducer is ``encoder``, ``decoder`` (the predictor) and ``joiner``, as sherpa-onnx names them;
a LAS is ``encoder`` and ``decoder``, one step of the speller. Features go in as they come from the
filterbank: normalisation and stacking are in the graph. Batches are of any size, and every state
is an input and an output, zeros at first.

Legend: N batch, M hypotheses, T feature frames of 10 ms, B bins, T' encoder frames, J joiner,
V vocabulary, H heads, E width of a head, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnisparse.deploy.onnx_encoders import Frames, LstmGraph, State
from omnisparse.deploy.onnx_graph import GraphBuilder
from omnisparse.deploy.onnx_layers import Layers
from omnisparse.deploy.onnx_segments import ConformerGraph, EmformerGraph, SegmentGraph
from omnisparse.deploy.onnx_weights import WeightStore
from omnisparse.models.base import BLANK, SOS_EOS
from omnisparse.models.conformer import ConformerEncoder
from omnisparse.models.emformer import EmformerEncoder
from omnisparse.models.las import LasModel
from omnisparse.models.lstm import LstmEncoder
from omnisparse.models.predictor import CONTEXT_SIZE, StatelessPredictor
from omnisparse.models.transducer import TransducerModel

NEVER = -1e9
"""Added to the score of the sentence mark, which our search never emits; finite, so that sums of
scores stay numbers."""


@dataclass(frozen=True)
class TransducerGraphs:
    """Writes the three parts of a transducer.

    Attributes:
        model: The net, for its structure.
        weights: Its parameters.
        frames: How features become frames.
    """

    model: TransducerModel
    weights: WeightStore
    frames: Frames

    @property
    def frames_per_step(self) -> int:
        """Feature frames of 10 ms per encoder frame."""
        encoder: Any = self.model.encoder
        reduction = (
            2**encoder.num_reductions
            if isinstance(encoder, LstmEncoder)
            else int(encoder.time_reduction)
        )
        return self.frames.stack * reduction

    @property
    def encoder_graph(self) -> LstmGraph | SegmentGraph:
        """What writes the encoder, and knows its states."""
        encoder = self.model.encoder
        step = self.frames_per_step
        if isinstance(encoder, ConformerEncoder):
            return ConformerGraph(encoder, self.weights, frames_per_step=step)
        if isinstance(encoder, EmformerEncoder):
            return EmformerGraph(encoder, self.weights, frames_per_step=step)
        assert isinstance(encoder, LstmEncoder)
        return LstmGraph(encoder, self.weights)

    def encoder(self, metadata: Mapping[str, str], *, chunk: int | None = None) -> bytes:
        """Features and states in, projected encodings and states out.

        Inputs: ``x [N, T, B]``, ``x_lens [N]`` (LSTM encoders without ``chunk``), the states,
        ``processed_lens [N]`` (segment encoders). Outputs: ``encoder_out [N, T', J]``,
        ``encoder_out_lens`` (with ``x_lens``), the states as ``new_...``.

        Args:
            metadata: Kept in the file.
            chunk: Feature frames T of every chunk; None for any number of them. Segment encoders
                have a number of their own.
        """
        graph, writer = GraphBuilder("encoder"), self.encoder_graph
        if isinstance(writer, SegmentGraph):
            chunk = (writer.segment + writer.right_context) * self.frames_per_step
        x = graph.input(
            "x", np.float32, ["N", "T" if chunk is None else chunk, self.frames.num_bins]
        )
        lengths = graph.input("x_lens", np.int64, ["N"]) if chunk is None else None
        states = {
            state.name: graph.input(state.name, np.float32, state.shape) for state in writer.states
        }
        if isinstance(writer, SegmentGraph):
            processed = graph.input("processed_lens", np.int64, ["N"])
            stacked = self.frames.whole_stacks(graph, x)
            encoded, new = writer.write(graph, stacked, states, processed)
        elif lengths is None:
            stacked = self.frames.whole_stacks(graph, x)
            encoded, _, new = writer.write(graph, stacked, states, None)
        else:
            stacked, lengths = self.frames.stacks(graph, x, lengths)
            encoded, lengths, new = writer.write(graph, stacked, states, lengths)
        projected = Layers(graph, self.weights).linear("joiner.encoder_projection", encoded)
        width = self.model.joiner.output.in_features
        graph.output("encoder_out", projected, np.float32, ["N", "S", width])
        if lengths is not None:
            graph.output("encoder_out_lens", lengths, np.int64, ["N"])
        _state_outputs(graph, writer.states, new)
        return graph.model(metadata)

    @property
    def decoder_states(self) -> tuple[State, ...]:
        """Of the LSTM predictor; none of the stateless one."""
        predictor = self.model.predictor
        if isinstance(predictor, StatelessPredictor):
            return ()
        shape = (len(predictor.layers), "N", predictor.output_dim)
        return State("h", shape), State("c", shape)

    def decoder(self, metadata: Mapping[str, str]) -> bytes:
        """Tokens in, projected predictor output out.

        Stateless: ``y [N, 2]`` int64, the last two tokens, negative ones counting as blank. LSTM:
        ``y [N]``, the last token (blank at first), and the states. Output: ``decoder_out [N, J]``.
        """
        graph = GraphBuilder("decoder")
        layers = Layers(graph, self.weights)
        new: dict[str, str] = {}
        if isinstance(self.model.predictor, StatelessPredictor):
            y = graph.input("y", np.int64, ["N", CONTEXT_SIZE])
            outputs = self.stateless(layers, y)
        else:
            y = graph.input("y", np.int64, ["N"])
            states = {
                state.name: graph.input(state.name, np.float32, state.shape)
                for state in self.decoder_states
            }
            outputs, new = self.recurrent(layers, y, states)
        width = self.model.joiner.output.in_features
        graph.output("decoder_out", outputs, np.float32, ["N", width])
        _state_outputs(graph, self.decoder_states, new)
        return graph.model(metadata)

    def stateless(self, layers: Layers, tokens: str) -> str:
        """``[N, J]`` after the last two tokens ``[N, 2]``."""
        graph = layers.graph
        known = graph.op("Max", tokens, graph.scalar(BLANK))  # sherpa-onnx begins with -1
        embedded = layers.embedding("predictor.embedding", known)
        joined = graph.op("Flatten", embedded, axis=1)
        outputs = graph.op("Relu", layers.linear("predictor.context", joined))
        return layers.linear("joiner.predictor_projection", outputs, bias=False)

    def recurrent(
        self, layers: Layers, tokens: str, states: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """``[N, J]`` after ``[N]`` tokens, and the next states."""
        graph = layers.graph
        embedded = layers.embedding("predictor.embedding", tokens)
        outputs = graph.op("Unsqueeze", embedded, graph.ints(0))
        new: dict[str, list[str]] = {"h": [], "c": []}
        for index in range(len(self.model.predictor.layers)):  # type: ignore[arg-type]
            hidden, cell = (_layer(graph, states[name], index) for name in ("h", "c"))
            outputs, hidden, cell = layers.lstm(f"predictor.layers.{index}", outputs, hidden, cell)
            outputs = layers.layer_norm(f"predictor.norms.{index}", outputs)
            new["h"].append(hidden)
            new["c"].append(cell)
        outputs = graph.op("Squeeze", outputs, graph.ints(0))
        projected = layers.linear("joiner.predictor_projection", outputs, bias=False)
        return projected, {name: graph.op("Concat", *new[name], axis=0) for name in new}

    def joiner(self, metadata: Mapping[str, str]) -> bytes:
        """``encoder_out [N, J]`` and ``decoder_out [N, J]`` in, ``logit [N, V]`` out."""
        graph = GraphBuilder("joiner")
        width = self.model.joiner.output.in_features
        encoded = graph.input("encoder_out", np.float32, ["N", width])
        predicted = graph.input("decoder_out", np.float32, ["N", width])
        logits = self.joined(Layers(graph, self.weights), encoded, predicted)
        graph.output("logit", logits, np.float32, ["N", self.model.vocab_size])
        return graph.model(metadata)

    def joined(self, layers: Layers, encoded: str, predicted: str) -> str:
        """Logits of projected encodings and predictions; the sentence mark never wins."""
        graph = layers.graph
        total = graph.op("Tanh", graph.op("Add", encoded, predicted))
        never = np.zeros(self.model.vocab_size, np.float32)
        never[SOS_EOS] = NEVER
        return graph.op("Add", layers.linear("joiner.output", total), graph.constant(never))


@dataclass(frozen=True)
class LasGraphs:
    """Writes the two parts of a LAS; attributes as of :class:`TransducerGraphs`."""

    model: LasModel
    weights: WeightStore
    frames: Frames

    def encoder(self, metadata: Mapping[str, str]) -> bytes:
        """A whole utterance in, what the speller attends to out.

        Inputs: ``x [N, T, B]``, ``x_lens [N]``. Outputs: ``keys [N, H, E, T']``,
        ``values [N, H, T', E]``, ``encoder_out_lens [N]``.
        """
        graph = GraphBuilder("encoder")
        layers = Layers(graph, self.weights)
        x = graph.input("x", np.float32, ["N", "T", self.frames.num_bins])
        lengths = graph.input("x_lens", np.int64, ["N"])
        assert isinstance(self.model.encoder, LstmEncoder)
        writer = LstmGraph(self.model.encoder, self.weights)
        stacked, lengths = self.frames.stacks(graph, x, lengths)
        batch = graph.op("Shape", x, start=0, end=1)
        states = {
            state.name: graph.op(
                "Expand",
                graph.constant(state.zeros(1)),
                graph.op("Concat", graph.ints(1), batch, graph.ints(1), axis=0),
            )
            for state in writer.states
        }
        encoded, ends, _ = writer.write(graph, stacked, states, lengths)
        assert ends is not None
        heads, dim = self.model.attention.heads, self.model.attention.dim
        keys = layers.linear("attention.key", encoded, bias=False)
        if self.model.attention.score is None:
            keys = graph.op("Mul", keys, graph.scalar(float((heads / dim) ** 0.5)))
        keys = self._by_head(graph, keys, [0, 2, 3, 1])
        values = self._by_head(graph, layers.linear("attention.value", encoded), [0, 2, 1, 3])
        graph.output("keys", keys, np.float32, ["N", heads, dim // heads, "S"])
        graph.output("values", values, np.float32, ["N", heads, "S", dim // heads])
        graph.output("encoder_out_lens", ends, np.int64, ["N"])
        return graph.model(metadata)

    @property
    def decoder_states(self) -> tuple[State, ...]:
        """Outputs and cells of the speller's layers, and its last context if a layer reads it."""
        layers = Layers(GraphBuilder("unused"), self.weights)
        depth = len(self.model.decoder.layers)
        width, cells = layers.width("decoder.layers.0"), layers.cells("decoder.layers.0")
        states = (State("h", (depth, "N", width)), State("c", (depth, "N", cells)))
        if not self.model.decoder.feeds_context:
            return states
        return (*states, State("context", ("N", self.model.attention.dim)))

    def decoder(self, metadata: Mapping[str, str]) -> bytes:
        """One token of M hypotheses in, log-probabilities of the next out.

        Inputs: ``y [M]`` int64 (the sentence mark, 1, at first), the states, ``keys``, ``values``
        and ``encoder_out_lens`` of M utterances, or of one that all hypotheses share. Outputs:
        ``log_probs [M, V]`` (minus infinity for blank), the states as ``new_...``.
        """
        graph = GraphBuilder("decoder")
        layers = Layers(graph, self.weights)
        heads, dim = self.model.attention.heads, self.model.attention.dim
        tokens = graph.input("y", np.int64, ["M"])
        states = {
            state.name: graph.input(
                state.name, np.float32, ["M" if item == "N" else item for item in state.shape]
            )
            for state in self.decoder_states
        }
        keys = graph.input("keys", np.float32, ["N", heads, dim // heads, "S"])
        values = graph.input("values", np.float32, ["N", heads, "S", dim // heads])
        lengths = graph.input("encoder_out_lens", np.int64, ["N"])
        inputs = layers.embedding("decoder.embedding", tokens)
        feeds_context = self.model.decoder.feeds_context
        if feeds_context:
            inputs = graph.op("Concat", inputs, states["context"], axis=1)
        hiddens: list[str] = []
        cells: list[str] = []
        depth = len(self.model.decoder.layers)
        for index in range(depth):
            output, hidden, cell = self._layer(layers, index, inputs, states)
            inputs = output
            hiddens, cells = hiddens + hidden, cells + cell
            if index == (depth - 1 if feeds_context else 0):
                context = self._context(layers, output, keys, values, lengths)
                inputs = graph.op("Concat", output, context, axis=1)
        logits = layers.linear("output", graph.op("Concat", output, context, axis=1))
        never = np.zeros(self.model.vocab_size, np.float32)
        never[BLANK] = -np.inf
        scores = graph.op("LogSoftmax", logits, axis=1)
        scores = graph.op("Add", scores, graph.constant(never))
        graph.output("log_probs", scores, np.float32, ["M", self.model.vocab_size])
        news = {"h": hiddens, "c": cells, "context": [context]}
        for state in self.decoder_states:
            joined = graph.op("Concat", *news[state.name], axis=0)
            shape = ["M" if item == "N" else item for item in state.shape]
            graph.output(f"new_{state.name}", joined, np.float32, shape)
        return graph.model(metadata)

    def _layer(
        self, layers: Layers, index: int, inputs: str, states: Mapping[str, str]
    ) -> tuple[str, list[str], list[str]]:
        """One step of a layer: ``[M, P]`` output, and its two new states."""
        graph = layers.graph
        hidden, cell = (_layer(graph, states[name], index) for name in ("h", "c"))
        frame = graph.op("Unsqueeze", inputs, graph.ints(0))
        output, hidden, cell = layers.lstm(f"decoder.layers.{index}", frame, hidden, cell)
        return graph.op("Squeeze", output, graph.ints(0)), [hidden], [cell]

    def _context(self, layers: Layers, output: str, keys: str, values: str, lengths: str) -> str:
        """``[M, A]`` contexts of ``[M, P]`` queries."""
        graph = layers.graph
        query = layers.linear("attention.query", output)
        heads, additive = self.model.attention.heads, self.model.attention.score is not None
        if additive:
            query = graph.op("Reshape", query, graph.ints(0, heads, -1, 1))
            sums = graph.op("Tanh", graph.op("Add", query, keys))
            vector = self.weights.vector(graph, "attention.score")
            vector = graph.op("Reshape", vector, graph.ints(1, heads, -1, 1))
            sums = graph.op("Mul", sums, vector)
            scores = graph.op("ReduceSum", sums, graph.ints(2), keepdims=1)
        else:
            query = graph.op("Reshape", query, graph.ints(0, heads, 1, -1))
            scores = graph.op("MatMul", query, keys)
        frames = graph.op("Squeeze", graph.op("Shape", keys, start=3, end=4), graph.ints(0))
        places = graph.op("Range", graph.scalar(0), frames, graph.scalar(1))
        valid = graph.op(
            "Less",
            graph.op("Unsqueeze", places, graph.ints(0)),
            graph.op("Unsqueeze", lengths, graph.ints(1)),
        )
        valid = graph.op("Unsqueeze", valid, graph.ints(1, 2))
        scores = graph.op("Where", valid, scores, graph.scalar(float("-inf")))
        context = graph.op("MatMul", graph.op("Softmax", scores, axis=3), values)
        return graph.op("Flatten", context, axis=1)

    def _by_head(self, graph: GraphBuilder, tensor: str, order: list[int]) -> str:
        split = graph.op("Reshape", tensor, graph.ints(0, 0, self.model.attention.heads, -1))
        return graph.op("Transpose", split, perm=order)


def _layer(graph: GraphBuilder, state: str, index: int) -> str:
    """``[1, N, _]``: the state of one layer."""
    return graph.op("Slice", state, graph.ints(index), graph.ints(index + 1))


def _state_outputs(graph: GraphBuilder, states: tuple[State, ...], new: Mapping[str, str]) -> None:
    for state in states:
        graph.output(f"new_{state.name}", new[state.name], np.float32, state.shape)
