"""Layers of the nets as ONNX nodes; torch's parameters under their own names.

Legend: T frames, N batch, F features, H cells, P output width of an LSTM (its projection, or H).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from omnisparse.deploy.onnx_graph import Array, GraphBuilder
from omnisparse.deploy.onnx_weights import Transform, WeightStore


@dataclass(frozen=True)
class Layers:
    """Writes layers of one net into one graph.

    Attributes:
        graph: Where the nodes go.
        weights: Where the parameters come from.
    """

    graph: GraphBuilder
    weights: WeightStore
    _placed: dict[str, str] = field(default_factory=dict)

    def linear(self, name: str, inputs: str, *, bias: bool = True) -> str:
        """``inputs`` ``[..., F]`` times the matrix of ``name``, plus its bias."""
        product = self._product(f"{name}.weight", inputs)
        if not bias:
            return product
        return self.graph.op("Add", product, self.weights.vector(self.graph, f"{name}.bias"))

    def _product(self, name: str, inputs: str) -> str:
        """``inputs`` ``[..., F]`` times a matrix ``[R, F]``: ``[..., R]``; by its factors."""
        if self.weights.gates(name) > 1:
            whole = self._gate_products(name, lambda rows: rows)
            whole = self.graph.op("Squeeze", whole, self.graph.ints(0))
            return self.graph.op("MatMul", inputs, self.graph.op("Transpose", whole, perm=[1, 0]))
        pair = self.weights.factors(name) or (name,)
        if self.weights.projection(name) is not None:
            inputs, pair = self._projected(name, inputs), pair[:1]
        for part in reversed(pair):
            matrix = self.weights.matrix(self.graph, part, np.transpose)
            inputs = self.graph.op("MatMul", inputs, matrix)
        return inputs

    def _projected(self, name: str, inputs: str) -> str:
        """What a matrix reads, each output of the layer before it times the shared projection."""
        graph, copies = self.graph, self.weights.copies(name)
        left, right = (self.weights.state[part] for part in self.weights.factors(name) or ())
        rank, width = right.shape
        others = left.shape[1] - copies * rank
        sizes = [width] * copies + [others] * (others > 0)
        parts = [inputs]
        if len(sizes) > 1:
            parts = graph.ops("Split", inputs, graph.ints(*sizes), num_outputs=len(sizes), axis=-1)
        shared = graph.op("Transpose", self._shared(name), perm=[1, 0])
        made = [graph.op("MatMul", part, shared) for part in parts[:copies]] + parts[copies:]
        return made[0] if len(made) == 1 else graph.op("Concat", *made, axis=-1)

    def _shared(self, name: str) -> str:
        """The right factor of a matrix, ``[r, F]``, stored once for all that read it."""
        pair = self.weights.factors(name)
        assert pair is not None
        factor = pair[1]
        if factor not in self._placed:
            self._placed[factor] = self._as_it_is(factor)
        return self._placed[factor]

    def _gate_products(self, name: str, order: Transform) -> str:
        """``[1, 4 H, F]``: the products of all gates, made once while a runtime loads the file."""
        gates = self.weights.gates(name)
        left, right = (
            self.weights.matrix(
                self.graph, part, lambda rows: order(rows).reshape(gates, -1, rows.shape[-1])
            )
            for part in self.weights.factors(name) or ()
        )
        shape = self.graph.ints(1, *self.weights.shape(name))
        return self.graph.op("Reshape", self.graph.op("MatMul", left, right), shape)

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
        if weights.gates(read) > 1:
            matrix = self._gate_products(read, _reordered)
        else:
            if weights.projection(read) is not None:
                inputs = self._projected(read, inputs)
            elif (pair := weights.factors(read)) is not None:
                inputs = self._product(pair[1], inputs)
            read = (weights.factors(read) or (read,))[0]
            matrix = weights.matrix(graph, read, lambda matrix: _reordered(matrix)[None])
        outputs, hidden, cell = graph.ops(
            "LSTM",
            inputs,
            matrix,
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
        if self.weights.gates(name) > 1:
            return self._gate_products(name, _reordered)
        pair = self.weights.factors(name) or (name,)
        matrix = self.weights.matrix(self.graph, pair[0], lambda rows: _reordered(rows)[None])
        if len(pair) == 1:
            return matrix
        return self.graph.op("MatMul", matrix, self._shared(name))

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
            self._transposed(full) for full in (f"{name}.weight_hh_l0", f"{name}.weight_hr_l0")
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

    def _transposed(self, name: str) -> list[str]:
        """The matrices by which a matrix multiplies, one after the other, transposed."""
        if self.weights.gates(name) > 1:
            whole = self.graph.op(
                "Squeeze", self._gate_products(name, lambda rows: rows), self.graph.ints(0)
            )
            return [self.graph.op("Transpose", whole, perm=[1, 0])]
        pair = self.weights.factors(name)
        if pair is None:
            return [self.weights.matrix(self.graph, name, np.transpose)]
        right = self.graph.op("Transpose", self._shared(name), perm=[1, 0])
        return [right, self.weights.matrix(self.graph, pair[0], np.transpose)]

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
