"""The Emformer encoder: transformer layers over segments with left and right context.

The layers are torchaudio's; this file prepares their inputs, in training and in a stream.

Legend: B batch, T' encoder frames, D model, N frames of a segment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omnisparse.models.encoder import SegmentEncoder
from omnisparse.models.operations import count_product
from omnisparse.models.torchaudio import require_torchaudio

_LayerState = tuple[Tensor, Tensor, Tensor, Tensor]
"""State of torchaudio's layers: memory bank (empty here), keys, values, frames so far."""


class EmformerEncoder(SegmentEncoder):
    """Input projection, stacking, and torchaudio's Emformer without its memory bank.

    Args: see :class:`SegmentEncoder`.

    Source: Shi et al. 2021, arXiv:2010.10759, section 2.2. Deviation: no memory bank, as in
    torchaudio's recipe, because its values differ between a padded batch and a stream.
    """

    def build_layers(
        self, num_layers: int, feed_forward_dim: int, dropout: float, **layer_options: Any
    ) -> None:
        """See :meth:`SegmentEncoder.build_layers`."""
        assert not layer_options, f"an Emformer has no {', '.join(layer_options)}"
        self.emformer = require_torchaudio("an Emformer encoder").models.Emformer(
            input_dim=self.output_dim,
            num_heads=self.heads,
            ffn_dim=feed_forward_dim,
            num_layers=num_layers,
            segment_length=self.segment,
            dropout=dropout,
            activation="gelu",
            left_context_length=self.left_context,
            right_context_length=self.right_context,
        )
        for layer in self.emformer.emformer_layers:
            layer.attention.register_forward_hook(_count_attention, with_kwargs=True)

    def encode(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """See :meth:`SegmentEncoder.encode`."""
        if self.whole_stacks:
            frames = self._with_right_context(frames, lengths)
        else:
            frames = F.pad(frames, (0, 0, 0, self.right_context))
        encoded: Tensor = self.emformer(frames, lengths)[0]
        return encoded

    def _with_right_context(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Frames with what is behind each utterance where its last segment looks for it.

        That is behind the segment, or behind the batch; nothing else of the utterance is there. So
        an utterance sees in a batch what it sees alone.
        """
        longest = int(lengths.max())
        frames = F.pad(frames, (0, 0, 0, longest + self.right_context - frames.size(1)))
        if self.right_context == 0:
            return frames
        steps = torch.arange(self.right_context, device=frames.device)
        ends = -(-lengths // self.segment) * self.segment
        places = (ends.clamp(max=longest)[:, None] + steps)[..., None]
        behind = (lengths[:, None] + steps)[..., None]
        width = frames.size(2)
        context = frames.gather(1, behind.expand(-1, -1, width))
        inside = torch.arange(frames.size(1), device=frames.device) < lengths[:, None]
        only = frames.masked_fill(~inside[..., None], 0.0)
        return only.scatter(1, places.expand(-1, -1, width), context)

    def has_encoded(self, layers: Any) -> bool:
        """See :meth:`SegmentEncoder.has_encoded`."""
        return bool(layers[0][3].any())

    def initial_layers(self, batch: int) -> tuple[_LayerState, ...]:
        """Zeros in the dtype of the weights (torchaudio's own initial state is always float32)."""
        weight = self.input_projection.weight
        context = weight.new_zeros(self.left_context, batch, self.output_dim)
        bank = weight.new_zeros(0, batch, self.output_dim)
        length = torch.zeros(1, batch, dtype=torch.int32, device=weight.device)
        return ((bank, context, context, length),) * len(self.emformer.emformer_layers)

    def encode_segment(
        self, frames: Tensor, right_context: Tensor, layers: Any
    ) -> tuple[Tensor, tuple[_LayerState, ...]]:
        """See :meth:`SegmentEncoder.encode_segment`.

        ``Emformer.infer`` requires whole segments, and for a batch of one stream the padding of a
        short segment is visible to attention. Its layers accept a short segment as it is.
        """
        output, right = frames.transpose(0, 1), right_context.transpose(0, 1)
        batch = frames.size(0)
        lengths = torch.full((batch,), output.size(0), dtype=torch.int64, device=frames.device)
        bank = output.new_zeros(0)
        after: list[_LayerState] = []
        for layer, state in zip(self.emformer.emformer_layers, layers, strict=True):
            # The layer changes the list, but not the tensors in it.
            output, right, updated, bank = layer.infer(output, lengths, right, list(state), bank)
            memory_bank, keys, values, length = updated
            # Clones, because torchaudio keeps views of longer tensors.
            after.append((memory_bank, keys.clone(), values.clone(), length))
        return output.transpose(0, 1), tuple(after)


def _count_attention(module: Any, inputs: Any, options: dict[str, Any], output: Any) -> None:
    """Count the two products of torchaudio's attention of all frames to all frames."""
    frames, right = options["utterance"], options["right_context"]
    seen = frames.size(0) + right.size(0)
    queries = seen + options["summary"].size(0)
    keys = seen + options["mems"].size(0)
    for _ in range(2):
        count_product(queries * keys * frames.size(1) * frames.size(2), frames, frames)
