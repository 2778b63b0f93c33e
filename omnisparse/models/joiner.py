"""The transducer's joiner.

Legend: B batch, T' encoder frames, U tokens, D model, J joiner, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from omnisparse.models.base import BLANK
from omnisparse.models.cell_norm import NormalisedProjection
from omnisparse.models.lattice import Activation, join_lattice
from omnisparse.models.products_bf16 import Linear


class Joiner(nn.Module):
    """Adds encoder and predictor and scores the next token.

    Args:
        encoder_dim: Width of the encoder's output.
        predictor_dim: Width of the predictor's output.
        dim: Width J of the sum.
        vocab_size: Tokens V with blank.
        activation: ``tanh``, or ``relu`` as torchaudio's RNN-T has it.
        normalised: Normalise both projections, as torchaudio's RNN-T does.

    Source: Graves et al. 2013, arXiv:1303.5778, eqs. 15-18, for the additive joint network.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        predictor_dim: int,
        dim: int,
        vocab_size: int,
        activation: Activation = "tanh",
        normalised: bool = False,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.encoder_projection: nn.Module
        self.predictor_projection: nn.Module
        if normalised:
            self.encoder_projection = NormalisedProjection(encoder_dim, dim)
            self.predictor_projection = NormalisedProjection(predictor_dim, dim)
        else:
            self.encoder_projection = Linear(encoder_dim, dim)
            self.predictor_projection = Linear(predictor_dim, dim, bias=False)
        self.output = Linear(dim, vocab_size)

    def forward(
        self,
        encoded: Tensor,
        predicted: Tensor,
        tokens: Tensor,
        frame_lengths: Tensor,
        token_lengths: Tensor,
    ) -> Tensor:
        """The collapsed lattice of a batch.

        Args:
            encoded: ``[B, T', D]`` encoder frames.
            predicted: ``[B, U + 1, D]`` predictor outputs.
            tokens: ``[B, U]`` int64.
            frame_lengths: ``[B]`` int64.
            token_lengths: ``[B]`` int64.

        Returns:
            ``[B, T', U + 1, 3]`` log-probabilities; see :func:`join_lattice`.
        """
        return join_lattice(
            self.encoder_projection(encoded),
            self.predictor_projection(predicted),
            self.output.weight,
            self.output.bias,
            tokens=tokens,
            frame_lengths=frame_lengths,
            token_lengths=token_lengths,
            blank=BLANK,
            activation=self.activation,
        )

    def score(self, total: Tensor) -> Tensor:
        """Logits ``[..., V]`` of sums ``[..., J]``; the sums are overwritten."""
        logits: Tensor = self.output(total.tanh_() if self.activation == "tanh" else total.relu_())
        return logits
