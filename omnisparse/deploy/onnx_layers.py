"""Layers of the nets as ONNX nodes; torch's parameters under their own names.

Legend: T frames, N batch, F features, H cells, P output width of an LSTM (its projection, or H).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omnisparse.deploy.onnx_graph import Array, GraphBuilder
from omnisparse.deploy.onnx_weights import WeightStore


@dataclass(frozen=True)
class Layers:
    """Writes layers of one net into one graph.

    Attributes:
        graph: Where the nodes go.
        weights: Where the parameters come from.
    """

    graph: GraphBuilder
    weights: WeightStore

    def linear(self, name: str, inputs: str, *, bias: bool = True) -> str:
        """``inputs`` ``[..., F]`` times the matrix of ``name``, plus its bias."""
        product = self._product(f"{name}.weight", inputs)
        if not bias:
            return product
        return self.graph.op("Add", product, self.weights.vector(self.graph, f"{name}.bias"))

    def _product(self, name: str, inputs: str) -> str:
        """``inputs`` ``[..., F]`` times a matrix ``[R, F]``: ``[..., R]``; by its factors."""
        for part in reversed(self.weights.factors(name) or (name,)):
            matrix = self.weights.matrix(self.graph, part, np.transpose)
            inputs = self.graph.op("MatMul", inputs, matrix)
        return inputs

    def layer_norm(self, name: str, inputs: str, epsilon: float = 1e-5) -> str:
        """Normalise the last dimension, if the net does."""
        if f"{name}.weight" not in self.weights.state:
            return inputs
        scale = self.weights.vector(self.graph, f"{name}.weight")
        bias = self.weights.vector(self.graph, f"{name}.bias")
        return self.graph.op("LayerNormalization", inputs, scale, bias, axis=-1, epsilon=epsilon)

    def embedding(self, name: str, tokens: str) -> str:
        """Rows of the table of ``name`` for int64 ``tokens``."""
        table, *others = self.weights.factors(f"{name}.weight") or (f"{name}.weight",)
        rows = self.graph.op("Gather", self._as_it_is(table), tokens)
        for factor in others:
            rows = self.graph.op("MatMul", rows, self._as_it_is(factor))
        return rows

    def _as_it_is(self, name: str) -> str:
        return self.weights.matrix(self.graph, name, lambda matrix: matrix)

    def lstm(self, name: str, inputs: str, hidden: str, cell: str) -> tuple[str, str, str]:
        """An LSTM or LSTMP layer over a sequence.

        Args:
            name: Of the layer.
            inputs: ``[T, N, F]``.
            hidden: ``[1, N, P]``: output before the first frame.
            cell: ``[1, N, H]``.

        Returns:
            ``[T, N, P]`` outputs, and both states after the last frame.
        """
        projection = f"{name}.weight_hr_l0"
        if projection in self.weights.state or self.weights.factors(projection) is not None:
            return self._lstmp(name, inputs, hidden, cell)
        graph, weights = self.graph, self.weights
        read = f"{name}.weight_ih_l0"
        if (pair := weights.factors(read)) is not None:
            read = pair[0]
            inputs = self._product(pair[1], inputs)
        outputs, hidden, cell = graph.ops(
            "LSTM",
            inputs,
            weights.matrix(graph, read, lambda matrix: _reordered(matrix)[None]),
            self._recurrent(f"{name}.weight_hh_l0"),
            weights.vector(
                graph, f"{name}.bias_ih_l0", f"{name}.bias_hh_l0", transform=_reordered_biases
            ),
            "",
            hidden,
            cell,
            num_outputs=3,
            hidden_size=self.cells(name),
        )
        return graph.op("Squeeze", outputs, graph.ints(1)), hidden, cell

    def _recurrent(self, name: str) -> str:
        """``[1, 4 H, H]`` for ONNX's LSTM, which wants it whole.

        Factors are multiplied once, while a runtime loads the file.
        """
        gates, *others = self.weights.factors(name) or (name,)
        matrix = self.weights.matrix(self.graph, gates, lambda rows: _reordered(rows)[None])
        for factor in others:
            right = self.weights.matrix(self.graph, factor, lambda rows: rows[None])
            matrix = self.graph.op("MatMul", matrix, right)
        return matrix

    def cells(self, name: str) -> int:
        """Cells H of an LSTM layer."""
        return int(self.weights.shape(f"{name}.weight_ih_l0")[0]) // 4

    def width(self, name: str) -> int:
        """Output width P of an LSTM layer."""
        return int(self.weights.shape(f"{name}.weight_hh_l0")[1])

    def _lstmp(self, name: str, inputs: str, hidden: str, cell: str) -> tuple[str, str, str]:
        """ONNX's LSTM has no projection, so the recurrence is written out as a ``Scan``."""
        graph, weights = self.graph, self.weights
        # Of the outer graph: in the body they would be read again for each frame.
        from_hidden, projection = (
            [
                weights.matrix(graph, part, np.transpose)
                for part in reversed(weights.factors(full) or (full,))
            ]
            for full in (f"{name}.weight_hh_l0", f"{name}.weight_hr_l0")
        )
        gates = self._product(f"{name}.weight_ih_l0", inputs)
        for bias in ("bias_ih_l0", "bias_hh_l0"):
            gates = graph.op("Add", gates, weights.vector(graph, f"{name}.{bias}"))
        body = self._lstmp_step(name, from_hidden, projection)
        first = graph.ints(0)
        hidden, cell, outputs = graph.ops(
            "Scan",
            graph.op("Squeeze", hidden, first),
            graph.op("Squeeze", cell, first),
            gates,
            num_outputs=3,
            num_scan_inputs=1,
            body=body.graph(),
        )
        return outputs, graph.op("Unsqueeze", hidden, first), graph.op("Unsqueeze", cell, first)

    def _lstmp_step(
        self, name: str, from_hidden: Sequence[str], projection: Sequence[str]
    ) -> GraphBuilder:
        """One frame of :meth:`_lstmp`; gates in torch's order: in, forget, candidate, out."""
        step = GraphBuilder(self.graph.fresh("step"), outer=self.graph)
        cells, width, label = self.cells(name), self.width(name), step.name
        hidden = step.input(f"{label}/hidden", np.float32, ["N", width])
        cell = step.input(f"{label}/cell", np.float32, ["N", cells])
        gates = step.input(f"{label}/gates", np.float32, ["N", 4 * cells])
        total = step.op("Add", gates, _chain(step, hidden, from_hidden))
        sizes = step.ints(*[cells] * 4)
        parts = step.ops("Split", total, sizes, num_outputs=4, axis=-1)
        admit, forget, emit = (step.op("Sigmoid", parts[index]) for index in (0, 1, 3))
        candidate = step.op("Tanh", parts[2])
        kept = step.op("Mul", forget, cell)
        cell = step.op("Add", kept, step.op("Mul", admit, candidate))
        hidden = step.op("Mul", emit, step.op("Tanh", cell))
        hidden = _chain(step, hidden, projection)
        step.output(f"{label}/next_hidden", hidden, np.float32, ["N", width])
        step.output(f"{label}/next_cell", cell, np.float32, ["N", cells])
        step.output(f"{label}/frame", hidden, np.float32, ["N", width])
        return step


def _chain(graph: GraphBuilder, inputs: str, matrices: Sequence[str]) -> str:
    """Products with one matrix after the other."""
    for matrix in matrices:
        inputs = graph.op("MatMul", inputs, matrix)
    return inputs


def _reordered(rows: Array) -> Array:
    """Rows in torch's order of gates (in, forget, candidate, out) in ONNX's.

    That is in, out, forget, candidate.
    """
    admit, forget, candidate, emit = np.split(rows, 4)
    return np.concatenate([admit, emit, forget, candidate])


def _reordered_biases(joined: Array) -> Array:
    """Both biases of a layer, as ``[1, 8 H]``."""
    return np.concatenate([_reordered(half) for half in np.split(joined, 2)])[None]
