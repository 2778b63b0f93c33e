"""The transducer's predictors: they read the tokens emitted so far.

Legend: B batch, U tokens, N hypotheses, D model, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnisparse.models.base import BLANK
from omnisparse.models.dropout import Dropout
from omnisparse.models.embedding import make_embedding
from omnisparse.models.lstm import lstm_step, make_lstm, run_lstm, zero_state
from omnisparse.models.products_bf16 import Linear

CONTEXT_SIZE = 2
"""Tokens that the stateless predictor sees."""

PredictorState = tuple[Tensor, ...]
"""Tensors whose first dimension is the hypotheses; their meaning is private to the predictor."""


class LstmPredictor(nn.Module):
    """The prediction network: embedding and LSTM layers over the tokens so far.

    Args:
        vocab_size: Tokens V; blank, id 0, stands for the start.
        embedding_dim: Width of the embedding.
        num_layers: LSTM layers.
        dim: Cells per layer, the output width.
        dropout: Probability, on the embedding and on the output of every layer.
        layer_norm: Normalise the output of every layer.
        projection: LSTMP width of every layer, then the output width; None for plain LSTM layers.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_dim: int,
        num_layers: int,
        dim: int,
        dropout: float,
        layer_norm: bool,
        projection: int | None = None,
    ) -> None:
        super().__init__()
        self.output_dim = projection or dim
        self.embedding = make_embedding(vocab_size, embedding_dim)
        widths = [embedding_dim] + [self.output_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(make_lstm(width, dim, projection) for width in widths)
        self.norms = nn.ModuleList(
            nn.LayerNorm(self.output_dim) if layer_norm else nn.Identity() for _ in widths
        )
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs before each of ``[B, U]`` int64 tokens and after the last: ``[B, U + 1, D]``."""
        outputs: Tensor = self.dropout(self.embedding(F.pad(tokens, (1, 0), value=BLANK).t()))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            assert isinstance(layer, nn.LSTM)
            outputs, _ = run_lstm(layer, outputs)
            outputs = self.dropout(norm(outputs))
        return outputs.transpose(0, 1)

    def initial_state(self, rows: int) -> PredictorState:
        """The state before the start symbol, for ``rows`` hypotheses."""
        return tuple(
            tensor
            for layer in self.layers
            for tensor in zero_state(layer, rows)  # type: ignore[arg-type]
        )

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """``[N, D]`` output after ``[N]`` tokens in evaluation mode, and the next state."""
        outputs = self.embedding(tokens)
        after: list[Tensor] = []
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            assert isinstance(layer, nn.LSTM)
            outputs, (hidden, cell) = lstm_step(
                layer, outputs, (state[2 * index], state[2 * index + 1])
            )
            outputs = norm(outputs)
            after += [hidden, cell]
        return outputs, tuple(after)


class StatelessPredictor(nn.Module):
    """A predictor that sees only the last two tokens: cheap, and without recurrent state.

    Args:
        vocab_size: Tokens V; blank, id 0, stands for the start.
        embedding_dim: Width of the embedding.
        dim: Output width.
        dropout: Probability, on the embedding.

    Source: Ghodsi et al. 2020, "RNN-transducer with stateless prediction network", ICASSP.
    """

    def __init__(self, *, vocab_size: int, embedding_dim: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.output_dim = dim
        self.embedding = make_embedding(vocab_size, embedding_dim)
        self.context = Linear(CONTEXT_SIZE * embedding_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs before each of ``[B, U]`` int64 tokens and after the last: ``[B, U + 1, D]``."""
        padded = F.pad(tokens, (CONTEXT_SIZE, 0), value=BLANK)
        return self._outputs(padded.unfold(1, CONTEXT_SIZE, 1))

    def initial_state(self, rows: int) -> PredictorState:
        """The state before the start symbol, for ``rows`` hypotheses."""
        device = self.embedding.weight.device
        return (torch.full((rows, CONTEXT_SIZE), BLANK, dtype=torch.int64, device=device),)

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """``[N, D]`` output after ``[N]`` tokens in evaluation mode, and the next state."""
        context = torch.cat([state[0][:, 1:], tokens[:, None]], dim=1)
        return self._outputs(context), (context,)

    def _outputs(self, contexts: Tensor) -> Tensor:
        """``[..., D]`` outputs of ``[..., CONTEXT_SIZE]`` tokens."""
        embedded = self.dropout(self.embedding(contexts))
        return torch.relu(self.context(embedded.flatten(-2)))
