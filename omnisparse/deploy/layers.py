"""The layers of a recogniser on packed weights, without torch.

Legend: N sequences or hypotheses, T frames, I input width, H cells, P output width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.packed import PackedModel, PackedTensor
from omnisparse.deploy.factored import (
    copies_of,
    factors_of,
    for_each_output,
    on_diagonal,
    projection_of,
)
from omnisparse.deploy.native import LayerStruct, kernels
from omnisparse.deploy.packing import pack
from omnisparse.deploy.sparse_kernels import (
    LANES,
    MAX_RANK,
    FactoredMatrix,
    PackedMatrix,
    Room,
)
from omnisparse.errors import FormatError

FloatArray = npt.NDArray[np.float32]

State = tuple[FloatArray, FloatArray]
"""Output ``[N, P]`` and cell ``[N, H]`` of an LSTM; never changed in place."""

_NORM_EPSILON = np.float32(1e-5)


class WeightReader:
    """Hands out the tensors of a net, each checked for its shape; the kernels check nothing.

    Args:
        files: The net.
    """

    def __init__(self, files: PackedModel) -> None:
        self._files = files
        self._left = set(files.names)
        self._shared: dict[str, PackedTensor] = {}
        self._room = Room()
        self.num_bytes = 0
        self.kinds: dict[str, str] = {}

    def matrix(self, fqn: str, rows: int, columns: int) -> PackedMatrix | FactoredMatrix:
        """A matrix [rows, columns], packed for the kernels."""
        shared = projection_of(fqn, self._files.names)
        gates = self._gates(fqn)
        rank = None if shared is not None else self._rank(fqn, rows // gates, columns)
        if rank is None and shared is None:
            return self._packed(fqn, rows, columns)
        left, right = factors_of(fqn)
        if shared is not None:
            return self._reader(fqn, shared, rows, columns)
        assert rank is not None
        first = self._read(left, (rows, rank))
        second = self._read(right, (gates * rank, columns))
        if fqn.endswith(".weight_hh_l0"):
            self._shared[right] = second  # the next layer may multiply by it, too
        if gates > 1:
            first = on_diagonal(first, gates)
        return FactoredMatrix(self._pack(first), self._pack(second))

    def _gates(self, fqn: str) -> int:
        """Equal blocks of rows of a matrix that are a product each."""
        by_gate = self._files.model.get("rank_scheme") == "per_gate"
        return 4 if by_gate and fqn.endswith((".weight_ih_l0", ".weight_hh_l0")) else 1

    def _reader(self, fqn: str, shared: str, rows: int, columns: int) -> FactoredMatrix:
        """A matrix that shares its right factor with the layer before it, which was read."""
        projection = self._shared.get(shared)
        if projection is None:
            raise FormatError(
                f"{self._files.place}: {fqn} has no right factor, nor has the layer before it one"
            )
        rank, width = projection.shape
        copies = copies_of(fqn, columns, width)
        others = columns - copies * width
        if others < 0:
            raise FormatError(f"{self._files.place}: {fqn} is too narrow for what it reads")
        wide = copies * rank + others
        if wide > MAX_RANK:  # C has no more room, and checks nothing
            raise FormatError(
                f"{self._files.place}: {fqn} has a left factor of {wide} columns; "
                f"up to {MAX_RANK} for our kernels"
            )
        left = self._read(factors_of(fqn)[0], (rows, wide))
        return FactoredMatrix(
            self._pack(left), self._pack(for_each_output(projection, copies, others))
        )

    def _rank(self, fqn: str, rows: int, columns: int) -> int | None:
        """Rank of a matrix that the net has as a product of two; None of all others."""
        ranks = self._files.model.get("ranks") or {}
        if fqn not in ranks:
            return None
        rank, most = ranks[fqn], min(rows, columns, MAX_RANK // self._gates(fqn))
        if type(rank) is not int or not 1 <= rank <= most:
            raise FormatError(
                f"{self._files.place}: rank of {fqn} is {rank!r}; from 1 to {most} for our kernels"
            )
        return rank

    def _packed(self, fqn: str, rows: int, columns: int) -> PackedMatrix:
        return self._pack(self._read(fqn, (rows, columns)))

    def _pack(self, tensor: PackedTensor) -> PackedMatrix:
        matrix = pack(tensor, room=self._room)
        self.num_bytes += matrix.num_bytes
        self.kinds[tensor.fqn] = matrix.kind
        return matrix

    def vector(self, fqn: str, size: int) -> FloatArray:
        """A vector [size]."""
        vector = self._read(fqn, (size,)).floats()
        self.num_bytes += vector.nbytes
        return vector

    def table(self, fqn: str, rows: int, columns: int) -> Embedding:
        """Rows to look up, in their stored type."""
        rank = self._rank(fqn, rows, columns)
        if rank is not None:
            left, right = factors_of(fqn)
            factor = self._stored_dense(right, rank, columns).floats()
            return Embedding(self._stored_dense(left, rows, rank), factor)
        return Embedding(self._stored_dense(fqn, rows, columns))

    def _stored_dense(self, fqn: str, rows: int, columns: int) -> PackedTensor:
        tensor = self._read(fqn, (rows, columns))
        if tensor.packing != "dense":
            raise FormatError(f"{self._files.place}: {fqn} is packed, but an embedding is never")
        self.num_bytes += tensor.values.nbytes
        return tensor

    def has(self, fqn: str) -> bool:
        """Whether the net has such a tensor."""
        return fqn in self._left or factors_of(fqn)[0] in self._left

    def skip(self, prefix: str) -> None:
        """Leaves out what recognition does not use."""
        self._left = {name for name in self._left if not name.startswith(prefix)}

    def finish(self) -> None:
        """Demands that every tensor was used.

        Raises:
            FormatError: Naming one that no layer here knows.
        """
        if self._left:
            raise FormatError(
                f"{self._files.place}: no kernel knows what to do with {min(self._left)}"
            )

    def _read(self, fqn: str, shape: tuple[int, ...]) -> PackedTensor:
        if fqn not in self._left:
            raise FormatError(f"{self._files.place}: its weights do not fit its model (no {fqn})")
        tensor = self._files.read(fqn)
        if tensor.shape != shape or tensor.dtype not in ("F32", "F16", "BF16", "I8"):
            raise FormatError(
                f"{self._files.place}: its weights do not fit its model "
                f"({fqn} is {tensor.dtype} {list(tensor.shape)}, expected {list(shape)})"
            )
        if tensor.dtype == "I8" and tensor.scale is None:
            raise FormatError(f"{self._files.place}: {fqn} is int8 without a scale")
        self._left.discard(fqn)
        return tensor


class Embedding:
    """Rows of a table.

    Args:
        tensor: The table [V, E].
        factor: [E, E'], by which each row is multiplied; None for none.
    """

    def __init__(self, tensor: PackedTensor, factor: FloatArray | None = None) -> None:
        self.factor = factor
        self.tensor = PackedTensor(
            tensor.fqn, tensor.shape, "dense", tensor.dtype, np.array(tensor.values),
            scale=tensor.scale,
        )  # fmt: skip

    def __call__(self, tokens: npt.NDArray[np.int64]) -> FloatArray:
        """``[..., E]`` rows of the given tokens, or ``[..., E']`` with a factor."""
        table = self.tensor
        flat = tokens.reshape(-1)
        rows = PackedTensor(
            table.fqn, (len(flat), table.shape[1]), "dense", table.dtype, table.values[flat],
            scale=None if table.scale is None else table.scale[flat],
        )  # fmt: skip
        found = rows.floats()
        if self.factor is not None:
            found = found @ self.factor
        return found.reshape(*tokens.shape, -1)


class Linear:
    """``y = W x + b``.

    Args:
        reader: Has the weights.
        prefix: Their name before ``.weight`` and ``.bias``.
        input_dim: Width of x.
        output_dim: Width of y.
        bias: Whether there is a b.
    """

    def __init__(
        self, reader: WeightReader, prefix: str, input_dim: int, output_dim: int, *, bias: bool
    ) -> None:
        self.matrix = reader.matrix(f"{prefix}.weight", output_dim, input_dim)
        self.bias = reader.vector(f"{prefix}.bias", output_dim) if bias else None

    def __call__(self, inputs: FloatArray) -> FloatArray:
        """``[N, output_dim]`` of ``[N, input_dim]``."""
        return self.matrix.products(inputs, self.bias)


class LayerNorm:
    """Normalises rows.

    Args:
        reader: Has the weights.
        prefix: Their name before ``.weight`` and ``.bias``.
        dim: Width of a row.
    """

    def __init__(self, reader: WeightReader, prefix: str, dim: int) -> None:
        self.gain = reader.vector(f"{prefix}.weight", dim)
        self.bias = reader.vector(f"{prefix}.bias", dim)

    def __call__(self, inputs: FloatArray) -> FloatArray:
        """``[N, dim]`` of ``[N, dim]``."""
        library, _ = kernels()
        if library is None:
            centred = inputs - inputs.mean(axis=1, keepdims=True)
            variance = np.square(centred).mean(axis=1, keepdims=True)
            normed = centred / np.sqrt(variance + _NORM_EPSILON)
            return np.asarray(normed * self.gain + self.bias, np.float32)
        inputs = np.ascontiguousarray(inputs)
        outputs = np.empty_like(inputs)
        library.omni_norm(
            *inputs.shape, inputs.ctypes.data, self.gain.ctypes.data, self.bias.ctypes.data,
            outputs.ctypes.data,
        )  # fmt: skip
        return outputs


class Lstm:
    """A unidirectional LSTM layer, or LSTMP with a projection.

    Args:
        reader: Has the weights.
        prefix: Their name before ``.weight_ih_l0`` and the others.
        input_dim: Width I of the input.
        dim: Cells H.
        projection: Output width P below H; None for H.
    """

    def __init__(
        self, reader: WeightReader, prefix: str, input_dim: int, dim: int, projection: int | None
    ) -> None:
        self.dim, self.output_dim = dim, projection or dim
        self.input = reader.matrix(f"{prefix}.weight_ih_l0", 4 * dim, input_dim)
        self.recurrent = reader.matrix(f"{prefix}.weight_hh_l0", 4 * dim, self.output_dim)
        self.projection = (
            reader.matrix(f"{prefix}.weight_hr_l0", projection, dim) if projection else None
        )
        biases = (reader.vector(f"{prefix}.bias_{kind}_l0", 4 * dim) for kind in ("ih", "hh"))
        self.bias: FloatArray = np.add(*biases)

    def zero_state(self, count: int) -> State:
        """The state before the first frame of ``count`` sequences."""
        return (
            np.zeros((count, self.output_dim), np.float32),
            np.zeros((count, self.dim), np.float32),
        )

    def run(self, frames: FloatArray, state: State) -> tuple[FloatArray, State]:
        """One sequence of ``[T, I]`` frames: ``[T, P]``, and the state after it."""
        library, _ = kernels()
        steps = len(frames)
        outputs = np.empty((steps, self.output_dim), np.float32)
        if library is None:
            for index in range(steps):
                output, state = self.step(frames[index : index + 1], state)
                outputs[index] = output[0]
            return outputs, state
        frames = np.ascontiguousarray(frames, dtype=np.float32)
        hidden, cell = state[0].copy(), state[1].copy()
        gates = np.empty((steps, 4 * self.dim), np.float32)
        size = LANES * self.input.width if steps > 3 else self.dim
        work = np.empty(max(size, self.dim), np.float32)
        library.omni_lstm(
            self.input.pointer, self.recurrent.pointer,
            None if self.projection is None else self.projection.pointer,
            self.bias.ctypes.data, steps, frames.ctypes.data, hidden.ctypes.data, cell.ctypes.data,
            outputs.ctypes.data, gates.ctypes.data, work.ctypes.data,
        )  # fmt: skip
        return outputs, (hidden, cell)

    def step(self, inputs: FloatArray, state: State) -> tuple[FloatArray, State]:
        """One frame of N sequences: ``[N, I]`` to ``[N, P]``, and their state after it."""
        gates = self.input.products(inputs, self.bias) + self.recurrent.products(state[0])
        library, level = kernels()
        cell = state[1].copy()
        if library is None:
            admit, forget, candidate, emit = np.split(gates, 4, axis=1)
            cell = _sigmoid(forget) * cell + _sigmoid(admit) * np.tanh(candidate)
            output = _sigmoid(emit) * np.tanh(cell)
        else:
            output = np.empty_like(cell)
            library.omni_gates(
                level, len(cell), self.dim, gates.ctypes.data, cell.ctypes.data, output.ctypes.data
            )
        if self.projection is not None:
            output = self.projection.products(output)
        return output, (output, cell)


def layer_struct(layer: Lstm, norm: LayerNorm | None, *, halves: bool = False) -> LayerStruct:
    """A layer and what follows it as C sees them; it keeps neither alive."""
    return LayerStruct(
        layer.input.pointer, layer.recurrent.pointer,
        None if layer.projection is None else layer.projection.pointer,
        layer.bias.ctypes.data,
        *(None, None) if norm is None else (norm.gain.ctypes.data, norm.bias.ctypes.data),
        halves,
    )  # fmt: skip


def _sigmoid(values: FloatArray) -> FloatArray:
    """The logistic function, by tanh, which overflows nowhere."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * values), np.float32)
