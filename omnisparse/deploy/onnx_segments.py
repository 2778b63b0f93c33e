"""Encoders that read segment by segment (Conformer, Emformer) as ONNX graphs.

A graph encodes one segment. Keys and values of the frames before it are carried in one tensor, the
inputs of the causal convolution in another; how many frames there were before is an input. That is
the layout of icefall's streaming Conformer, whose width D is twice ours: keys beside values.

Legend: N batch, D model, H heads, E = D / H, L layers, C frames of a segment, R of right context,
A of left context, W = A + C, K kernel, r time reduction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from omnisparse.deploy.onnx_encoders import State
from omnisparse.deploy.onnx_graph import GraphBuilder
from omnisparse.deploy.onnx_layers import Layers
from omnisparse.deploy.onnx_weights import WeightStore
from omnisparse.models.conformer import ROTARY_BASE, ConformerEncoder
from omnisparse.models.emformer import EmformerEncoder
from omnisparse.models.encoder import SegmentEncoder

_HIDDEN = -1e8
"""Added to scores of what may not be seen, as in torchaudio's Emformer."""


class SegmentGraph(ABC):
    """Writes a segment encoder.

    Args:
        encoder: The encoder.
        weights: Its parameters, below ``encoder.``.
        num_layers: Layers L.
        heads: Attention heads.
        left_context: Frames A.
        kernel: Frames K of the convolution; 1 without one.
        frames_per_step: Feature frames of 10 ms per encoder frame.

    Raises:
        ValueError: If the encoder has no left context, which the state's layout cannot hold.
    """

    def __init__(
        self,
        encoder: SegmentEncoder,
        weights: WeightStore,
        *,
        num_layers: int,
        heads: int,
        left_context: int,
        kernel: int,
        frames_per_step: int,
    ) -> None:
        if left_context < 1:
            raise ValueError("an encoder with left_context 0 cannot be exported; 1 or more can")
        self.weights = weights
        self.num_layers = num_layers
        self.dim = encoder.output_dim
        self.time_reduction = encoder.time_reduction
        self.segment = encoder.segment
        self.right_context = encoder.right_context
        self.heads = heads
        self.left_context = left_context
        self.rows = max(1, kernel - 1)  # no state may be empty
        self.frames_per_step = frames_per_step

    @property
    def states(self) -> tuple[State, State]:
        """Keys beside values, and the convolution's inputs (in the first D of 2 D)."""
        layers, width = self.num_layers, 2 * self.dim
        return (
            State("attn", (layers, self.left_context, "N", width)),
            State("conv", (layers, self.rows, "N", width)),
        )

    def write(
        self, graph: GraphBuilder, frames: str, states: Mapping[str, str], processed: str
    ) -> tuple[str, dict[str, str]]:
        """Add the nodes.

        Args:
            graph: Where they go.
            frames: ``[N, (C + R) r, F]``.
            states: Names of the states' inputs.
            processed: ``[N]`` int64: feature frames before the segment.

        Returns:
            ``[N, C, D]`` encodings, and the new states.
        """
        layers = Layers(graph, self.weights)
        projected = layers.linear("encoder.input_projection", frames)
        frames = graph.op("Reshape", projected, graph.ints(0, -1, self.dim))
        hidden = self._hidden(graph, processed)
        new: dict[str, list[str]] = {"attn": [], "conv": []}
        for index in range(self.num_layers):
            before = {
                name: graph.op(
                    "Transpose",
                    graph.op("Gather", states[name], graph.scalar(index), axis=0),
                    perm=[1, 0, 2],
                )
                for name in ("attn", "conv")
            }
            frames, after = self.layer(layers, index, frames, before, hidden)
            for name, value in after.items():
                by_time = graph.op("Transpose", value, perm=[1, 0, 2])
                new[name].append(graph.op("Unsqueeze", by_time, graph.ints(0)))
        encoded = graph.op("Slice", frames, graph.ints(0), graph.ints(self.segment), graph.ints(1))
        return encoded, {name: graph.op("Concat", *new[name], axis=0) for name in new}

    @abstractmethod
    def layer(
        self, layers: Layers, index: int, frames: str, before: Mapping[str, str], hidden: str
    ) -> tuple[str, dict[str, str]]:
        """Add a layer.

        Args:
            layers: Where the nodes go.
            index: Number of the layer.
            frames: ``[N, C + R, D]``.
            before: ``attn`` ``[N, A, 2 D]`` and ``conv`` ``[N, rows, 2 D]``.
            hidden: ``[N, 1, 1, A]``, to be added to the scores of the left context.

        Returns:
            ``[N, C + R, D]``, and the next ``attn`` and ``conv``.
        """

    def _hidden(self, graph: GraphBuilder, processed: str) -> str:
        """What hides places of the left context that no frame has filled: ``[N, 1, 1, A]``."""
        past = graph.op("Div", processed, graph.scalar(self.frames_per_step))
        past = graph.op("Unsqueeze", past, graph.ints(1))
        # The newest of A places is filled first.
        needed = graph.constant(np.arange(self.left_context, 0, -1, dtype=np.int64)[None])
        filled = graph.op("GreaterOrEqual", past, needed)
        hidden = graph.op("Where", filled, graph.scalar(0.0), graph.scalar(_HIDDEN))
        return graph.op("Unsqueeze", hidden, graph.ints(1, 2))

    def by_head(self, graph: GraphBuilder, tensor: str) -> str:
        """``[N, W, D]`` to ``[N, H, W, E]``."""
        split = graph.op("Reshape", tensor, graph.ints(0, 0, self.heads, -1))
        return graph.op("Transpose", split, perm=[0, 2, 1, 3])

    def attended(
        self, graph: GraphBuilder, queries: str, keys: str, values: str, hidden: str
    ) -> str:
        """Softmax attention of ``[N, H, _, E]`` tensors: ``[N, _, D]``.

        Args:
            graph: Where the nodes go.
            queries: Of the frames that ask.
            keys: Of the left context, then of the others.
            values: Of the same.
            hidden: ``[N, 1, 1, A + others]``, added to the scores.
        """
        scale = graph.scalar(float((self.dim // self.heads) ** -0.5))
        transposed = graph.op("Transpose", keys, perm=[0, 1, 3, 2])
        scores = graph.op("MatMul", graph.op("Mul", queries, scale), transposed)
        weights = graph.op("Softmax", graph.op("Add", scores, hidden), axis=-1)
        context = graph.op("MatMul", weights, values)
        context = graph.op("Transpose", context, perm=[0, 2, 1, 3])
        return graph.op("Reshape", context, graph.ints(0, 0, self.dim))

    def widened(self, graph: GraphBuilder, hidden: str, others: int) -> str:
        """``hidden`` for the left context and ``others`` frames that are never hidden."""
        pads = graph.ints(0, 0, 0, 0, 0, 0, 0, others)
        return graph.op("Pad", hidden, pads)


class ConformerGraph(SegmentGraph):
    """Writes our causal Conformer. See :class:`SegmentGraph`.

    Keys are carried without their rotation and rotated by their place in the window: scores depend
    on distances only, so the numbers are the same, and no angle grows with the recording.
    """

    def __init__(
        self, encoder: ConformerEncoder, weights: WeightStore, *, frames_per_step: int
    ) -> None:
        first: Any = encoder.layers[0]
        super().__init__(
            encoder, weights, num_layers=len(encoder.layers), heads=first.attention.heads,
            left_context=encoder.left_context,
            kernel=int(weights.state["encoder.layers.0.convolution.depthwise.weight"].shape[2]),
            frames_per_step=frames_per_step,
        )  # fmt: skip

    def layer(
        self, layers: Layers, index: int, frames: str, before: Mapping[str, str], hidden: str
    ) -> tuple[str, dict[str, str]]:
        """See :meth:`SegmentGraph.layer`."""
        graph, name = layers.graph, f"encoder.layers.{index}"
        frames = self._add_feed_forward(layers, f"{name}.first_feed_forward", frames)
        attended, attn = self._attend(layers, f"{name}.attention", frames, before["attn"], hidden)
        frames = graph.op("Add", frames, attended)
        convolved, conv = self._convolve(layers, f"{name}.convolution", frames, before["conv"])
        frames = graph.op("Add", frames, convolved)
        frames = self._add_feed_forward(layers, f"{name}.second_feed_forward", frames)
        return layers.layer_norm(f"{name}.norm", frames), {"attn": attn, "conv": conv}

    def _add_feed_forward(self, layers: Layers, name: str, frames: str) -> str:
        graph = layers.graph
        expanded = layers.linear(f"{name}.expand", layers.layer_norm(f"{name}.norm", frames))
        contracted = layers.linear(f"{name}.contract", _silu(graph, expanded))
        return graph.op("Add", frames, graph.op("Mul", contracted, graph.scalar(0.5)))

    def _attend(
        self, layers: Layers, name: str, frames: str, before: str, hidden: str
    ) -> tuple[str, str]:
        graph = layers.graph
        projected = layers.linear(f"{name}.input", layers.layer_norm(f"{name}.norm", frames))
        queries, carried = graph.ops(
            "Split", projected, graph.ints(self.dim, 2 * self.dim), num_outputs=2, axis=2
        )
        window = graph.op("Concat", before, carried, axis=1)
        keys, values = graph.ops(
            "Split", window, graph.ints(self.dim, self.dim), num_outputs=2, axis=2
        )
        left, segment = self.left_context, self.segment
        context = self.attended(
            graph,
            self._rotated(graph, self.by_head(graph, queries), left, segment),
            self._rotated(graph, self.by_head(graph, keys), 0, left + segment),
            self.by_head(graph, values),
            self.widened(graph, hidden, segment),
        )
        return layers.linear(f"{name}.output", context), _last(graph, window, left)

    def _rotated(self, graph: GraphBuilder, tensor: str, start: int, count: int) -> str:
        """``[N, H, count, E]`` turned as positions ``start``.. of the window."""
        half = self.dim // self.heads // 2
        exponents = np.arange(half, dtype=np.float64) / half
        angles = np.arange(start, start + count)[:, None] * ROTARY_BASE**-exponents
        cosine = graph.constant(np.cos(angles).astype(np.float32))
        sine = graph.constant(np.sin(angles).astype(np.float32))
        first, second = graph.ops("Split", tensor, graph.ints(half, half), num_outputs=2, axis=3)
        return graph.op(
            "Concat",
            graph.op("Sub", graph.op("Mul", first, cosine), graph.op("Mul", second, sine)),
            graph.op("Add", graph.op("Mul", first, sine), graph.op("Mul", second, cosine)),
            axis=3,
        )

    def _convolve(self, layers: Layers, name: str, frames: str, before: str) -> tuple[str, str]:
        graph = layers.graph
        expanded = layers.linear(f"{name}.expand", layers.layer_norm(f"{name}.norm", frames))
        value, gate = graph.ops(
            "Split", expanded, graph.ints(self.dim, self.dim), num_outputs=2, axis=2
        )
        gated = graph.op("Mul", value, graph.op("Sigmoid", gate))
        kernel = int(self.weights.state[f"{name}.depthwise.weight"].shape[2])
        carried = graph.op("Slice", before, graph.ints(0), graph.ints(self.dim), graph.ints(2))
        joined = graph.op("Concat", carried, gated, axis=1)
        seen = joined if kernel > 1 else gated
        mixed = graph.op(
            "Conv",
            graph.op("Transpose", seen, perm=[0, 2, 1]),
            self.weights.matrix(graph, f"{name}.depthwise.weight", lambda weight: weight),
            self.weights.vector(graph, f"{name}.depthwise.bias"),
            group=self.dim,
        )
        mixed = layers.layer_norm(
            f"{name}.depthwise_norm", graph.op("Transpose", mixed, perm=[0, 2, 1])
        )
        padded = graph.op(
            "Pad", _last(graph, joined, self.rows), graph.ints(0, 0, 0, 0, 0, self.dim)
        )
        return layers.linear(f"{name}.contract", _silu(graph, mixed)), padded


class EmformerGraph(SegmentGraph):
    """Writes torchaudio's Emformer without its memory bank. See :class:`SegmentGraph`."""

    def __init__(
        self, encoder: EmformerEncoder, weights: WeightStore, *, frames_per_step: int
    ) -> None:
        layers: Any = encoder.emformer.emformer_layers
        super().__init__(
            encoder, weights, num_layers=len(layers), heads=layers[0].attention.num_heads,
            left_context=encoder.left_context, kernel=1, frames_per_step=frames_per_step,
        )  # fmt: skip

    def layer(
        self, layers: Layers, index: int, frames: str, before: Mapping[str, str], hidden: str
    ) -> tuple[str, dict[str, str]]:
        """See :meth:`SegmentGraph.layer`."""
        graph, name = layers.graph, f"encoder.emformer.emformer_layers.{index}"
        normalised = layers.layer_norm(f"{name}.layer_norm_input", frames)
        queries = layers.linear(f"{name}.attention.emb_to_query", normalised)
        carried = layers.linear(f"{name}.attention.emb_to_key_value", normalised)
        window = graph.op("Concat", before["attn"], carried, axis=1)
        keys, values = graph.ops(
            "Split", window, graph.ints(self.dim, self.dim), num_outputs=2, axis=2
        )
        context = self.attended(
            graph,
            self.by_head(graph, queries),
            self.by_head(graph, keys),
            self.by_head(graph, values),
            self.widened(graph, hidden, self.segment + self.right_context),
        )
        frames = graph.op("Add", layers.linear(f"{name}.attention.out_proj", context), frames)
        inner = layers.linear(f"{name}.pos_ff.1", layers.layer_norm(f"{name}.pos_ff.0", frames))
        outputs = layers.linear(f"{name}.pos_ff.4", _gelu(graph, inner))
        frames = layers.layer_norm(f"{name}.layer_norm_output", graph.op("Add", outputs, frames))
        # The right context is not remembered: it comes again as the next segment.
        end = self.left_context + self.segment
        seen = graph.op("Slice", window, graph.ints(0), graph.ints(end), graph.ints(1))
        conv = graph.op("Identity", before["conv"])
        return frames, {"attn": _last(graph, seen, self.left_context), "conv": conv}


def _last(graph: GraphBuilder, tensor: str, count: int) -> str:
    """The last ``count`` of ``[N, W, _]``."""
    end = np.iinfo(np.int64).max
    return graph.op("Slice", tensor, graph.ints(-count), graph.ints(end), graph.ints(1))


def _silu(graph: GraphBuilder, tensor: str) -> str:
    return graph.op("Mul", tensor, graph.op("Sigmoid", tensor))


def _gelu(graph: GraphBuilder, tensor: str) -> str:
    error = graph.op("Erf", graph.op("Mul", tensor, graph.scalar(float(np.sqrt(0.5)))))
    half = graph.op("Mul", tensor, graph.scalar(0.5))
    return graph.op("Mul", half, graph.op("Add", error, graph.scalar(1.0)))
