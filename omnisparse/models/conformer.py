"""A causal Conformer: attention within a segment and a bounded past, convolution of the past only.

Legend: B batch, T' encoder frames, D model, H heads, E = D / H, C frames of a segment, L frames of
left context, S segments, K convolution kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnisparse.models.depthwise import causal_depthwise
from omnisparse.models.dropout import Dropout
from omnisparse.models.encoder import SegmentEncoder
from omnisparse.models.losses import length_mask
from omnisparse.models.operations import count_product
from omnisparse.models.products_bf16 import Linear, in_float32, is_bf16_on_cpu

ROTARY_BASE = 10000.0
"""Longest wavelength of the rotary embedding, over 2 pi."""

_WHOLE_WINDOWS = 4
"""Up to so many windows long, an utterance is attended to as a whole: cheaper than windows, which
are copies of keys and values."""


class _LayerMemory(NamedTuple):
    """State of one layer within a stream."""

    keys: Tensor
    """``[B, H, l, E]``, rotated, with l <= L."""

    values: Tensor
    """``[B, H, l, E]``."""

    convolved: Tensor
    """``[B, K - 1, D]``: the last inputs of the convolution."""


class _Memory(NamedTuple):
    """State of all layers within a stream."""

    position: int
    """Frames encoded so far."""

    layers: tuple[_LayerMemory, ...]
    """One entry per layer."""


class _Rotation(NamedTuple):
    """Angles of the rotary embedding for consecutive positions."""

    cosine: Tensor
    """``[T', E / 2]`` float32."""

    sine: Tensor
    """``[T', E / 2]`` float32."""


class FeedForward(nn.Module):
    """Normalisation and two linear layers, without the residual connection.

    Args:
        dim: Width D outside.
        hidden_dim: Width inside.
        dropout: Probability, after each linear layer.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = Linear(dim, hidden_dim)
        self.contract = Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, frames: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        hidden = self.dropout(F.silu(self.expand(self.norm(frames))))
        contracted: Tensor = self.dropout(self.contract(hidden))
        return contracted


class SegmentAttention(nn.Module):
    """Self-attention within each segment and to the L frames before it.

    Args:
        dim: Width D, a multiple of ``2 * heads``.
        heads: Number of heads H.
        segment: Frames C of a segment.
        left_context: Frames L before a segment.
        dropout: Probability, on the weights and on the output.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34 (rotary positions: scores depend only on
    distances, so the keys of a stream can be stored unchanged). Deviation: Gulati et al. 2020 use
    the relative position embeddings of Transformer-XL.
    """

    def __init__(
        self, *, dim: int, heads: int, segment: int, left_context: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.segment = segment
        self.left_context = left_context
        self.norm = nn.LayerNorm(dim)
        self.input = Linear(dim, 3 * dim)
        self.output = Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, frames: Tensor, rotation: _Rotation, mask: Tensor) -> Tensor:
        """Attend in all segments at once.

        Args:
            frames: ``[B, S * C, D]``.
            rotation: Angles of positions 0..S * C - 1.
            mask: Bool, from :func:`_whole_mask` or :func:`_segment_mask`.

        Returns:
            ``[B, S * C, D]``.
        """
        queries, keys, values = self._project(frames, rotation)
        batch, whole = frames.size(0), mask.size(-1) == frames.size(1)
        for factor in (keys, values):
            count_product(frames.numel() * mask.size(-1), queries, factor)
        if not whole:
            queries = rearrange(queries, "b h (s c) e -> (b s) h c e", c=self.segment)
            keys, values = self._windows(keys), self._windows(values)
        if is_bf16_on_cpu(queries):  # small products of many shapes
            queries, keys, values = queries.float(), keys.float(), values.float()
        with in_float32(queries):
            context = F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                dropout_p=self.dropout.p if self.training else 0.0,
            )
        if not whole:
            context = rearrange(context, "(b s) h c e -> b h (s c) e", b=batch)
        return self._leave(context)

    def step(
        self, frames: Tensor, rotation: _Rotation, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend in the next segment of a stream.

        Args:
            frames: ``[B, n, D]``, n <= C.
            rotation: Angles of their positions.
            keys: ``[B, H, l, E]`` of the frames before, l <= L.
            values: ``[B, H, l, E]`` of the same.

        Returns:
            ``[B, n, D]``, and keys and values for the next segment.
        """
        queries, new_keys, new_values = self._project(frames, rotation)
        keys, values = torch.cat([keys, new_keys], dim=2), torch.cat([values, new_values], dim=2)
        context = F.scaled_dot_product_attention(queries, keys, values)
        start = max(0, keys.size(2) - self.left_context)
        return self._leave(context), keys[:, :, start:].clone(), values[:, :, start:].clone()

    def _project(self, frames: Tensor, rotation: _Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values, each ``[B, H, T', E]``."""
        projected = self.input(self.norm(frames))
        rotated, values = projected.split([2 * frames.size(2), frames.size(2)], dim=-1)
        rotated = rearrange(rotated, "b t (two h e) -> b two h t e", two=2, h=self.heads)
        queries, keys = _rotate(rotated, rotation).unbind(1)
        return queries, keys, rearrange(values, "b t (h e) -> b h t e", h=self.heads)

    def _windows(self, tensor: Tensor) -> Tensor:
        """Frames that each segment sees: ``[B, H, S * C, E]`` to ``[B * S, H, L + C, E]``."""
        padded = F.pad(tensor, (0, 0, self.left_context, 0))
        windows = padded.unfold(2, self.left_context + self.segment, self.segment)
        return rearrange(windows, "b h s e c -> (b s) h c e")

    def _leave(self, context: Tensor) -> Tensor:
        """``[B, H, T', E]`` contexts to ``[B, T', D]`` outputs."""
        joined = rearrange(context, "b h t e -> b t (h e)")
        outputs: Tensor = self.dropout(self.output(joined))
        return outputs


class CausalConvolution(nn.Module):
    """Gated depthwise convolution over a frame and the K - 1 before it.

    Args:
        dim: Width D.
        kernel: Frames K that it sees.
        dropout: Probability, on the output.

    Source: Gulati et al. 2020, arXiv:2005.08100, section 2.2. Deviation: causal, and with LayerNorm
    instead of BatchNorm, because BatchNorm statistics would differ between subnets.
    """

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.depthwise_norm = nn.LayerNorm(dim)
        self.contract = Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, frames: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T', D]`` after ``[B, K - 1, D]`` inputs to ``[B, T', D]``, and the last inputs."""
        gated = torch.cat([before, F.glu(self.expand(self.norm(frames)), dim=-1)], dim=1)
        mixed = causal_depthwise(self.depthwise, gated)
        outputs = self.dropout(self.contract(F.silu(self.depthwise_norm(mixed))))
        return outputs, gated[:, frames.size(1) :]


class ConformerLayer(nn.Module):
    """Half-step feed-forward, attention, convolution, half-step feed-forward, normalisation.

    Args:
        dim: Width D.
        heads: Attention heads.
        feed_forward_dim: Width inside the feed-forward parts.
        kernel: Frames of the convolution.
        segment: Frames of a segment.
        left_context: Frames of left context.
        dropout: Probability.

    Source: Gulati et al. 2020, arXiv:2005.08100, eq. 1.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        feed_forward_dim: int,
        kernel: int,
        segment: int,
        left_context: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first_feed_forward = FeedForward(dim, feed_forward_dim, dropout)
        self.attention = SegmentAttention(
            dim=dim, heads=heads, segment=segment, left_context=left_context, dropout=dropout
        )
        self.convolution = CausalConvolution(dim, kernel, dropout)
        self.second_feed_forward = FeedForward(dim, feed_forward_dim, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, frames: Tensor, rotation: _Rotation, mask: Tensor) -> Tensor:
        """``[B, S * C, D]`` to ``[B, S * C, D]``; see :meth:`SegmentAttention.forward`."""
        frames = frames + 0.5 * self.first_feed_forward(frames)
        frames = frames + self.attention(frames, rotation, mask)
        outputs, _ = self._leave(frames, self.nothing_convolved(frames.size(0)))
        return outputs

    def step(
        self, frames: Tensor, rotation: _Rotation, memory: _LayerMemory
    ) -> tuple[Tensor, _LayerMemory]:
        """``[B, n, D]``, the next segment of a stream, to ``[B, n, D]`` and the next memory."""
        frames = frames + 0.5 * self.first_feed_forward(frames)
        attended, keys, values = self.attention.step(frames, rotation, memory.keys, memory.values)
        outputs, convolved = self._leave(frames + attended, memory.convolved)
        return outputs, _LayerMemory(keys, values, convolved.clone())

    def nothing_convolved(self, batch: int) -> Tensor:
        """The zeros before the convolution's first input: ``[B, K - 1, D]``."""
        weight = self.convolution.depthwise.weight
        return weight.new_zeros(batch, weight.size(2) - 1, weight.size(0))

    def _leave(self, frames: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Everything after the attention; also returns the last inputs of the convolution."""
        outputs, convolved = self.convolution(frames, before)
        frames = frames + outputs
        frames = frames + 0.5 * self.second_feed_forward(frames)
        return self.norm(frames), convolved


class ConformerEncoder(SegmentEncoder):
    """Input projection, stacking and causal Conformer layers.

    Args: those of :class:`SegmentEncoder` except ``right_context``, and

        kernel: Encoder frames of the causal convolution, >= 1.

    ``dim`` is a multiple of ``2 * heads``.

    Source: Gulati et al. 2020, arXiv:2005.08100; segments as in Chen et al. 2021,
    arXiv:2010.11395, section 3 (chunk-wise attention with a bounded history).
    """

    def build_layers(
        self,
        num_layers: int,
        feed_forward_dim: int,
        dropout: float,
        *,
        kernel: int = 15,
        **layer_options: Any,
    ) -> None:
        """See :meth:`SegmentEncoder.build_layers`."""
        assert not layer_options, f"a Conformer has no {', '.join(layer_options)}"
        assert not self.right_context, "a Conformer has no right context"
        self.head_dim = self.output_dim // self.heads
        self.layers = nn.ModuleList(
            ConformerLayer(
                dim=self.output_dim,
                heads=self.heads,
                feed_forward_dim=feed_forward_dim,
                kernel=kernel,
                segment=self.segment,
                left_context=self.left_context,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def encode(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """See :meth:`SegmentEncoder.encode`."""
        length = frames.size(1)
        frames = F.pad(frames, (0, 0, 0, -length % self.segment))
        rotation = _angles(0, frames.size(1), self.head_dim, frames.device)
        of_windows = frames.size(1) > _WHOLE_WINDOWS * (self.left_context + self.segment)
        make_mask = _segment_mask if of_windows else _whole_mask
        mask = make_mask(lengths, frames.size(1), self.segment, self.left_context)
        for layer in self.layers:
            frames = layer(frames, rotation, mask)
        return frames[:, :length]

    def initial_layers(self, batch: int) -> _Memory:
        """The state before the first frame."""
        layers: list[_LayerMemory] = []
        for layer in self.layers:
            assert isinstance(layer, ConformerLayer)
            convolved = layer.nothing_convolved(batch)
            empty = convolved.new_zeros(batch, layer.attention.heads, 0, self.head_dim)
            layers.append(_LayerMemory(empty, empty, convolved))
        return _Memory(0, tuple(layers))

    def encode_segment(
        self, frames: Tensor, right_context: Tensor, layers: Any
    ) -> tuple[Tensor, _Memory]:
        """See :meth:`SegmentEncoder.encode_segment`."""
        assert isinstance(layers, _Memory)
        rotation = _angles(layers.position, frames.size(1), self.head_dim, frames.device)
        position, after = layers.position + frames.size(1), []
        for layer, memory in zip(self.layers, layers.layers, strict=True):
            assert isinstance(layer, ConformerLayer)
            frames, memory = layer.step(frames, rotation, memory)
            after.append(memory)
        return frames, _Memory(position, tuple(after))


def _whole_mask(lengths: Tensor, padded: int, segment: int, left_context: int) -> Tensor:
    """Frames of its utterance that a frame may attend to: ``[B, 1, S * C, S * C]`` bool."""
    positions = torch.arange(padded, device=lengths.device)
    starts = (positions - positions % segment)[:, None]
    # Padding sees the first frame of its segment: softmax over no frame is undefined.
    valid = length_mask(lengths, padded)[:, None] | (positions == starts)
    near = (positions >= starts - left_context) & (positions < starts + segment)
    return (near & valid)[:, None]


def _segment_mask(lengths: Tensor, padded: int, segment: int, left_context: int) -> Tensor:
    """Frames of its window that a segment may attend to: ``[B * S, 1, 1, L + C]`` bool."""
    starts = torch.arange(0, padded, segment, device=lengths.device)[:, None]
    window = torch.arange(-left_context, segment, device=lengths.device)
    positions = starts + window
    # A segment of padding only sees its first frame: softmax over no frame is undefined.
    limits = torch.maximum(lengths[:, None, None], starts + 1)
    return ((positions >= 0) & (positions < limits)).flatten(0, 1)[:, None, None]


def _angles(start: int, count: int, head_dim: int, device: torch.device) -> _Rotation:
    """Rotations of positions ``start..start + count - 1``, computed in float64.

    After an hour of frames the fastest pair has turned by 1e5 radians; float32 resolves such an
    angle only to 0.01.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    positions = torch.arange(start, start + count, dtype=torch.float64, device=device)
    angles = positions[:, None] * ROTARY_BASE**-exponents
    return _Rotation(angles.cos().float(), angles.sin().float())


def _rotate(tensor: Tensor, rotation: _Rotation) -> Tensor:
    """``[B, H, T', E]`` with each pair (i, i + E / 2) turned by its position's angle."""
    first, second = tensor.chunk(2, dim=-1)
    cosine, sine = rotation.cosine.to(tensor.dtype), rotation.sine.to(tensor.dtype)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
