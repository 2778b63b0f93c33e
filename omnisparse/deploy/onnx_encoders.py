"""Streaming encoders as ONNX graphs: features and state in, encodings and state out.

Legend: T feature frames of 10 ms, N batch, B bins, F = stack * B, L layers, H cells, P output width
of an LSTM, D model, C frames of a segment, R of right context, A of left context, K kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from omnisparse.deploy.onnx_graph import Array, GraphBuilder
from omnisparse.deploy.onnx_layers import Layers
from omnisparse.deploy.onnx_weights import WeightStore
from omnisparse.models.lstm import LstmEncoder


@dataclass(frozen=True)
class State:
    """One tensor that an encoder carries from chunk to chunk, zeros at first."""

    name: str
    """Of the input; the output is ``new_`` and this."""

    shape: tuple[int | str, ...]
    """``N`` stands for the batch."""

    def zeros(self, batch: int) -> Array:
        """Its value before the first chunk."""
        return np.zeros([batch if item == "N" else int(item) for item in self.shape], np.float32)


@dataclass(frozen=True)
class Frames:
    """How features become the frames of an encoder: normalised, then stacked.

    Attributes:
        num_bins: Bins B of a feature frame.
        stack: Feature frames joined into one.
        mean: ``[B]``, or None where nothing is normalised.
        std: ``[B]``, or None.
    """

    num_bins: int
    stack: int
    mean: Array | None
    std: Array | None

    def normalised(self, graph: GraphBuilder, features: str) -> str:
        """``[N, T, B]`` features minus the mean, divided by the standard deviation."""
        if self.mean is None or self.std is None:
            return features
        centred = graph.op("Sub", features, graph.constant(self.mean.astype(np.float32)))
        return graph.op("Div", centred, graph.constant(self.std.astype(np.float32)))

    def whole_stacks(self, graph: GraphBuilder, features: str) -> str:
        """``[N, T, B]`` with whole stacks only, to ``[N, T / stack, F]``."""
        shape = graph.ints(0, -1, self.stack * self.num_bins)
        return graph.op("Reshape", self.normalised(graph, features), shape)

    def stacks(self, graph: GraphBuilder, features: str, lengths: str) -> tuple[str, str]:
        """Stack each utterance as if alone: its last frame fills up its last stack.

        Args:
            graph: Where the nodes go.
            features: ``[N, T, B]``.
            lengths: ``[N]`` int64, 1..T.

        Returns:
            ``[N, ceil(T / stack), F]``, and ``[N]`` int64 lengths in stacks.
        """
        stack, one = graph.scalar(self.stack), graph.scalar(1)
        padding = graph.scalar(self.stack - 1)
        total = graph.op("Squeeze", graph.op("Shape", features, start=1, end=2), graph.ints(0))
        count = graph.op("Div", graph.op("Add", total, padding), stack)
        places = graph.op(
            "Range", graph.scalar(0), graph.op("Mul", count, stack), one
        )  # of frames, whole stacks
        last = graph.op("Unsqueeze", graph.op("Sub", lengths, one), graph.ints(1))
        places = graph.op("Min", graph.op("Unsqueeze", places, graph.ints(0)), last)
        places = graph.op("Unsqueeze", places, graph.ints(2))
        frames = graph.op("GatherND", features, places, batch_dims=1)
        stacked = self.whole_stacks(graph, frames)
        return stacked, graph.op("Div", graph.op("Add", lengths, padding), stack)


class LstmGraph:
    """Writes an LSTM encoder.

    Args:
        encoder: The encoder.
        weights: Its parameters, below ``encoder.``.
    """

    def __init__(self, encoder: LstmEncoder, weights: WeightStore) -> None:
        self.weights = weights
        self.num_layers = len(encoder.layers)
        self.num_reductions = encoder.num_reductions
        self.dim = encoder.output_dim
        self.cells = int(weights.shape("encoder.layers.0.weight_ih_l0")[0]) // 4

    @property
    def states(self) -> tuple[State, State]:
        """Outputs and cells of all layers."""
        layers = self.num_layers
        return State("h", (layers, "N", self.dim)), State("c", (layers, "N", self.cells))

    def write(
        self, graph: GraphBuilder, frames: str, states: Mapping[str, str], lengths: str | None
    ) -> tuple[str, str | None, dict[str, str]]:
        """Add the nodes.

        Args:
            graph: Where they go.
            frames: ``[N, T / stack, F]``.
            states: Names of the states' inputs.
            lengths: ``[N]`` int64 valid frames; None where all are, a multiple of the reduction.

        Returns:
            ``[N, T', P]`` encodings, their lengths (None as ``lengths``), and the new states.
        """
        layers = Layers(graph, self.weights)
        frames = graph.op("Transpose", frames, perm=[1, 0, 2])
        hiddens: list[str] = []
        cells: list[str] = []
        for index in range(self.num_layers):
            hidden, cell = (
                graph.op("Slice", states[name], graph.ints(index), graph.ints(index + 1))
                for name in ("h", "c")
            )
            frames, hidden, cell = layers.lstm(f"encoder.layers.{index}", frames, hidden, cell)
            hiddens.append(hidden)
            cells.append(cell)
            frames = layers.layer_norm(f"encoder.norms.{index}", frames)
            if index < self.num_reductions:
                frames, lengths = self._halved(graph, frames, lengths)
        encoded = graph.op("Transpose", frames, perm=[1, 0, 2])
        new = {
            "h": graph.op("Concat", *hiddens, axis=0),
            "c": graph.op("Concat", *cells, axis=0),
        }
        return encoded, lengths, new

    def _halved(
        self, graph: GraphBuilder, frames: str, lengths: str | None
    ) -> tuple[str, str | None]:
        """Join neighbours of ``[T, N, P]``; what is beyond a length counts as zeros."""
        if lengths is not None:
            frames = _masked(graph, frames, lengths)
            total = graph.op("Shape", frames, start=0, end=1)
            odd = graph.op("Mod", total, graph.ints(2))
            pads = graph.op("Concat", graph.ints(0, 0, 0), odd, graph.ints(0, 0), axis=0)
            frames = graph.op("Pad", frames, pads)
            lengths = graph.op("Div", graph.op("Add", lengths, graph.scalar(1)), graph.scalar(2))
        by_batch = graph.op("Transpose", frames, perm=[1, 0, 2])
        paired = graph.op("Reshape", by_batch, graph.ints(0, -1, 2 * self.dim))
        return graph.op("Transpose", paired, perm=[1, 0, 2]), lengths


def _masked(graph: GraphBuilder, frames: str, lengths: str) -> str:
    """``[T, N, P]`` with zeros beyond ``[N]`` lengths."""
    total = graph.op("Squeeze", graph.op("Shape", frames, start=0, end=1), graph.ints(0))
    places = graph.op("Range", graph.scalar(0), total, graph.scalar(1))
    valid = graph.op(
        "Less",
        graph.op("Unsqueeze", places, graph.ints(1)),
        graph.op("Unsqueeze", lengths, graph.ints(0)),
    )
    valid = graph.op("Unsqueeze", valid, graph.ints(2))
    return graph.op("Where", valid, frames, graph.scalar(0.0))
