"""Layers of the nets as ONNX nodes; torch's parameters under their own names.

Legend: T frames, N batch, F features, H cells, P output width of an LSTM (its projection, or H).
"""

from __future__ import annotations

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
        matrix = self.weights.matrix(self.graph, f"{name}.weight", np.transpose)
        product = self.graph.op("MatMul", inputs, matrix)
        if not bias:
            return product
        return self.graph.op("Add", product, self.weights.vector(self.graph, f"{name}.bias"))

    def layer_norm(self, name: str, inputs: str, epsilon: float = 1e-5) -> str:
        """Normalise the last dimension, if the net does."""
        if f"{name}.weight" not in self.weights.state:
            return inputs
        scale = self.weights.vector(self.graph, f"{name}.weight")
        bias = self.weights.vector(self.graph, f"{name}.bias")
        return self.graph.op("LayerNormalization", inputs, scale, bias, axis=-1, epsilon=epsilon)

    def embedding(self, name: str, tokens: str) -> str:
        """Rows of the table of ``name`` for int64 ``tokens``."""
        table = self.weights.matrix(self.graph, f"{name}.weight", lambda matrix: matrix)
        return self.graph.op("Gather", table, tokens)

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
        if f"{name}.weight_hr_l0" in self.weights.state:
            return self._lstmp(name, inputs, hidden, cell)
        graph, weights = self.graph, self.weights
        outputs, hidden, cell = graph.ops(
            "LSTM",
            inputs,
            weights.matrix(graph, f"{name}.weight_ih_l0", lambda matrix: _reordered(matrix)[None]),
            weights.matrix(graph, f"{name}.weight_hh_l0", lambda matrix: _reordered(matrix)[None]),
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

    def cells(self, name: str) -> int:
        """Cells H of an LSTM layer."""
        return int(self.weights.state[f"{name}.weight_ih_l0"].shape[0]) // 4

    def width(self, name: str) -> int:
        """Output width P of an LSTM layer."""
        return int(self.weights.state[f"{name}.weight_hh_l0"].shape[1])

    def _lstmp(self, name: str, inputs: str, hidden: str, cell: str) -> tuple[str, str, str]:
        """ONNX's LSTM has no projection, so the recurrence is written out as a ``Scan``."""
        graph, weights = self.graph, self.weights
        from_inputs = weights.matrix(graph, f"{name}.weight_ih_l0", np.transpose)
        from_hidden = weights.matrix(graph, f"{name}.weight_hh_l0", np.transpose)
        projection = weights.matrix(graph, f"{name}.weight_hr_l0", np.transpose)
        gates = graph.op("MatMul", inputs, from_inputs)
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

    def _lstmp_step(self, name: str, from_hidden: str, projection: str) -> GraphBuilder:
        """One frame of :meth:`_lstmp`; gates in torch's order: in, forget, candidate, out."""
        step = GraphBuilder(self.graph.fresh("step"), outer=self.graph)
        cells, width, label = self.cells(name), self.width(name), step.name
        hidden = step.input(f"{label}/hidden", np.float32, ["N", width])
        cell = step.input(f"{label}/cell", np.float32, ["N", cells])
        gates = step.input(f"{label}/gates", np.float32, ["N", 4 * cells])
        total = step.op("Add", gates, step.op("MatMul", hidden, from_hidden))
        sizes = step.ints(*[cells] * 4)
        parts = step.ops("Split", total, sizes, num_outputs=4, axis=-1)
        admit, forget, emit = (step.op("Sigmoid", parts[index]) for index in (0, 1, 3))
        candidate = step.op("Tanh", parts[2])
        kept = step.op("Mul", forget, cell)
        cell = step.op("Add", kept, step.op("Mul", admit, candidate))
        hidden = step.op("Mul", emit, step.op("Tanh", cell))
        hidden = step.op("MatMul", hidden, projection)
        step.output(f"{label}/next_hidden", hidden, np.float32, ["N", width])
        step.output(f"{label}/next_cell", cell, np.float32, ["N", cells])
        step.output(f"{label}/frame", hidden, np.float32, ["N", width])
        return step


def _reordered(rows: Array) -> Array:
    """Rows in torch's order of gates (in, forget, candidate, out) in ONNX's.

    That is in, out, forget, candidate.
    """
    admit, forget, candidate, emit = np.split(rows, 4)
    return np.concatenate([admit, emit, forget, candidate])


def _reordered_biases(joined: Array) -> Array:
    """Both biases of a layer, as ``[1, 8 H]``."""
    return np.concatenate([_reordered(half) for half in np.split(joined, 2)])[None]
