"""The Emformer encoder: transformer layers over segments with left and right context.

The layers are torchaudio's; this file feeds them, in training and in a stream.

Legend: B batch, T' encoder frames, D model, N frames of a segment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.models import Emformer

from omnisparse.models.encoder import SegmentEncoder

_LayerState = tuple[Tensor, Tensor, Tensor, Tensor]
"""What torchaudio's layers carry: memory bank (empty here), keys, values, frames so far."""


class EmformerEncoder(SegmentEncoder):
    """Input projection, stacking, and torchaudio's Emformer without its memory bank.

    Args:
        input_dim: Width F of the features.
        num_layers: Emformer layers.
        dim: Width D, a multiple of ``time_reduction`` and of ``heads``.
        heads: Attention heads.
        feed_forward_dim: Width inside the feed-forward part of a layer.
        time_reduction: Input frames per encoder frame.
        segment: Encoder frames of a segment, >= 1.
        left_context: Encoder frames before a segment whose keys and values it sees, >= 0.
        right_context: Encoder frames after a segment that it sees, >= 0; with ``segment`` they
            are the latency.
        dropout: Probability, inside the layers.

    Source: Shi et al. 2021, arXiv:2010.10759, section 2.2. Deviation: no memory bank, as in
    torchaudio's recipe, whose padded and streamed memories would differ.
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
        right_context: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            input_dim=input_dim,
            dim=dim,
            time_reduction=time_reduction,
            segment=segment,
            right_context=right_context,
        )
        self.left_context = left_context
        self.emformer = Emformer(
            input_dim=dim,
            num_heads=heads,
            ffn_dim=feed_forward_dim,
            num_layers=num_layers,
            segment_length=segment,
            dropout=dropout,
            activation="gelu",
            left_context_length=left_context,
            right_context_length=right_context,
        )

    def encode(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """See :meth:`SegmentEncoder.encode`."""
        encoded: Tensor = self.emformer(F.pad(frames, (0, 0, 0, self.right_context)), lengths)[0]
        return encoded

    def initial_layers(self, batch: int) -> tuple[_LayerState, ...]:
        """Zeros, in the type of the weights; torchaudio's own are float32 whatever those are."""
        weight = self.input_projection.weight
        context = weight.new_zeros(self.left_context, batch, self.output_dim)
        bank = weight.new_zeros(0, batch, self.output_dim)
        length = torch.zeros(1, batch, dtype=torch.int32, device=weight.device)
        return ((bank, context, context, length),) * len(self.emformer.emformer_layers)

    def encode_segment(
        self, frames: Tensor, right_context: Tensor, layers: Any
    ) -> tuple[Tensor, tuple[_LayerState, ...]]:
        """See :meth:`SegmentEncoder.encode_segment`.

        ``Emformer.infer`` wants whole segments, and lets the padding of a short one be seen when
        the batch is one stream; its layers take a short one as it is.
        """
        output, right = frames.transpose(0, 1), right_context.transpose(0, 1)
        batch = frames.size(0)
        lengths = torch.full((batch,), output.size(0), dtype=torch.int64, device=frames.device)
        bank = output.new_zeros(0)
        after: list[_LayerState] = []
        for layer, state in zip(self.emformer.emformer_layers, layers, strict=True):
            # The list is the layer's to write on; the tensors in it are not written.
            output, right, updated, bank = layer.infer(output, lengths, right, list(state), bank)
            memory_bank, keys, values, length = updated
            # Clones, for torchaudio keeps views of longer tensors.
            after.append((memory_bank, keys.clone(), values.clone(), length))
        return output.transpose(0, 1), tuple(after)
