"""The interface of streaming encoders, and the input side of those that read by segments.

Legend: B batch, T feature frames, T' encoder frames, F features, D model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnisparse.models.losses import length_mask
from omnisparse.models.products_bf16 import Linear


class EncoderState(NamedTuple):
    """State of a batch of streams between two chunks."""

    memory: Any
    """Tensors in tuples, of constant size; their meaning is private to the encoder."""

    ended: bool = False
    """Whether the streams have ended; such a state accepts no more audio."""


class Encoder(nn.Module, ABC):
    """Turns features into encodings, a padded batch at once or streams chunk by chunk."""

    output_dim: int
    """Width D of the encodings."""

    @abstractmethod
    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Output frames for ``[B]`` input lengths: time reduction rounded up, at least 1."""

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch; padding never influences a valid frame.

        Args:
            features: ``[B, T, F]`` float32.
            lengths: ``[B]`` int64, >= 1.

        Returns:
            ``[B, T', D]`` encodings (undefined beyond each length) and ``[B]`` int64 lengths.
        """

    @abstractmethod
    def initial_memory(self, batch: int) -> Any:
        """Memory of an :class:`EncoderState` before the first chunk of ``batch`` streams."""

    @abstractmethod
    def advance(self, features: Tensor, memory: Any, *, final: bool) -> tuple[Tensor, Any]:
        """:meth:`forward_chunk` on a state's memory."""

    def initial_state(self, batch: int) -> EncoderState:
        """The state before the first chunk of ``batch`` streams."""
        return EncoderState(self.initial_memory(batch))

    def forward_chunk(
        self, features: Tensor, state: EncoderState, *, final: bool = False
    ) -> tuple[Tensor, EncoderState]:
        """Encode the next chunk of a stream; equal to :meth:`forward` on the whole.

        Args:
            features: ``[B, T, F]`` float32, all B streams equally long; T may be 0.
            state: From :meth:`initial_state` or the chunk before; it is left as it is.
            final: Whether the stream ends here, so that waiting frames are padded and encoded.

        Returns:
            ``[B, T', D]`` encodings, T' possibly 0, and the state for the next chunk.

        Raises:
            ValueError: If the stream of ``state`` has ended.
        """
        if state.ended:
            raise ValueError(
                "this state's stream has ended; every recording starts with initial_state()"
            )
        encoded, memory = self.advance(features, state.memory, final=final)
        return encoded, EncoderState(memory, ended=final)


class _SegmentMemory(NamedTuple):
    """State of a :class:`SegmentEncoder` between two chunks."""

    features: Tensor
    """``[B, n, F]`` with n < time reduction: they wait for the rest of their stack."""

    frames: Tensor
    """``[B, m, D]`` with m < segment + right context: they wait for the rest of their segment."""

    layers: Any
    """State of the layers after the segments before."""


class SegmentEncoder(Encoder):
    """An encoder whose layers see the frames of a segment together.

    Frames are counted from the start of the utterance, so a segment always holds the same frames,
    independent of how the audio is split into chunks.

    Args:
        input_dim: Width F of the features.
        num_layers: Layers.
        dim: Width D of the layers, a multiple of ``time_reduction`` and of ``heads``.
        heads: Attention heads.
        feed_forward_dim: Width inside the feed-forward parts of a layer.
        time_reduction: Input frames per encoder frame. Each is projected to
            D / ``time_reduction``, neighbours are stacked.
        segment: Encoder frames that are encoded together, >= 1; with ``right_context`` they are
            the latency.
        left_context: Encoder frames before a segment that its attention sees, >= 0.
        right_context: Encoder frames after a segment that it may see, >= 0.
        dropout: Probability, inside the layers.
        whole_stacks: Encode only whole stacks, as torchaudio's RNN-T does: input frames at the end
            that fill none are right context of the last segment, no frame of their own.
        input_bias: Whether the input projection has a bias.
        **layer_options: Options that only the layers of a subclass have.

    Source: torchaudio's Emformer RNN-T recipe, for projecting before stacking.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        num_layers: int,
        dim: int,
        heads: int,
        feed_forward_dim: int,
        time_reduction: int = 1,
        segment: int = 16,
        left_context: int = 32,
        right_context: int = 0,
        dropout: float = 0.0,
        whole_stacks: bool = False,
        input_bias: bool = True,
        **layer_options: Any,
    ) -> None:
        super().__init__()
        self.output_dim = dim
        self.heads = heads
        self.whole_stacks = whole_stacks
        self.time_reduction = time_reduction
        self.segment = segment
        self.left_context = left_context
        self.right_context = right_context
        self.input_projection = Linear(input_dim, dim // time_reduction, bias=input_bias)
        self.build_layers(num_layers, feed_forward_dim, dropout, **layer_options)

    @abstractmethod
    def build_layers(
        self, num_layers: int, feed_forward_dim: int, dropout: float, **layer_options: Any
    ) -> None:
        """Make the layers; widths, segment and contexts are already set as attributes."""

    @abstractmethod
    def encode(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Encode projected utterances.

        Args:
            frames: ``[B, T', D]``, zero beyond the lengths; with ``whole_stacks``, behind them
                comes the stack that is not whole, so there may be T' + 1.
            lengths: ``[B]`` int64, the longest being T'.

        Returns:
            ``[B, T', D]``, undefined beyond the lengths.
        """

    @abstractmethod
    def initial_layers(self, batch: int) -> Any:
        """State of the layers before the first segment."""

    @abstractmethod
    def encode_segment(
        self, frames: Tensor, right_context: Tensor, layers: Any
    ) -> tuple[Tensor, Any]:
        """Encode the next segment of a stream.

        Args:
            frames: ``[B, n, D]`` with n = segment, or less in the last one, and n > 0.
            right_context: ``[B, right context, D]``: the frames after it, zero beyond the end.
            layers: State of the layers; not changed.

        Returns:
            ``[B, n, D]``, and the state of the layers for the next segment.
        """

    def has_encoded(self, layers: Any) -> bool:
        """Whether the state of the layers is after a segment; for ``whole_stacks``."""
        raise NotImplementedError

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Output frames for ``[B]`` input lengths: time reduction rounded up, at least 1.

        With ``whole_stacks`` rounded down, but still at least 1.
        """
        more = 0 if self.whole_stacks else self.time_reduction - 1
        return ((lengths + more) // self.time_reduction).clamp(min=1)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch; see :meth:`Encoder.forward`."""
        features = features[:, : int(lengths.max())]
        # Missing frames at the end of a stream are zeros, in a batch and for a single stream.
        valid = length_mask(lengths, features.size(1))[:, :, None]
        frames = self._stack(self.input_projection(features) * valid.to(features.dtype))
        lengths = self.output_lengths(lengths)
        return self.encode(frames, lengths), lengths

    def initial_memory(self, batch: int) -> _SegmentMemory:
        """No waiting frames, and the initial state of the layers."""
        weight = self.input_projection.weight
        return _SegmentMemory(
            weight.new_zeros(batch, 0, weight.size(1)),
            weight.new_zeros(batch, 0, self.output_dim),
            self.initial_layers(batch),
        )

    def advance(self, features: Tensor, memory: Any, *, final: bool) -> tuple[Tensor, Any]:
        """Encode every segment that is complete by now, right context included."""
        assert isinstance(memory, _SegmentMemory)
        features = torch.cat([memory.features, features], dim=1)
        whole = features.size(1)
        if not final:
            whole -= whole % self.time_reduction
        projected = self._stack(self.input_projection(features[:, :whole]))
        frames, layers = torch.cat([memory.frames, projected], dim=1), memory.layers
        encoded: list[Tensor] = []
        start, total = 0, frames.size(1)
        if final and self.whole_stacks and features.size(1) % self.time_reduction:
            has_begun = memory.frames.size(1) or projected.size(1) > 1
            total -= int(bool(has_begun or self.has_encoded(memory.layers)))
        needed = 1 if final else self.segment + self.right_context
        while total - start >= needed:
            end = min(start + self.segment, total)
            right = frames[:, end : end + self.right_context]
            right = F.pad(right, (0, 0, 0, self.right_context - right.size(1)))
            output, layers = self.encode_segment(frames[:, start:end], right, layers)
            encoded.append(output)
            start = end
        # Clones, so that waiting frames do not keep a long chunk in memory.
        waiting = _SegmentMemory(features[:, whole:].clone(), frames[:, start:].clone(), layers)
        return torch.cat(encoded, dim=1) if encoded else frames[:, :0], waiting

    def _stack(self, projected: Tensor) -> Tensor:
        """Join neighbours, the last ones filled up with zeros: ``[B, T', D]``."""
        projected = F.pad(projected, (0, 0, 0, -projected.size(1) % self.time_reduction))
        return rearrange(
            projected, "batch (time stack) dim -> batch time (stack dim)", stack=self.time_reduction
        )
