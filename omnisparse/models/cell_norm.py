"""Predictor and projections as torchaudio's Emformer RNN-T has them: normalised within the cell.

Legend: B batch, U tokens, N hypotheses, D model, J joiner, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnisparse.models.base import BLANK
from omnisparse.models.dropout import Dropout
from omnisparse.models.embedding import make_embedding
from omnisparse.models.predictor import PredictorState
from omnisparse.models.products_bf16 import Linear

_EPSILON = 1e-3
"""Of the norms within a cell, as in ``emformer_rnnt_base``."""


class CellNormLstm(nn.Module):
    """An LSTM layer that normalises the sum of its gates, and its cell.

    Args:
        input_dim: Width of the input.
        dim: Cells.

    Source: Ba et al. 2016, arXiv:1607.06450, eqs. 20-22, as torchaudio's RNN-T has it: one norm
    over the summed gates, and the normalised cell is also what the next step starts from.
    """

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.x2g = Linear(input_dim, 4 * dim, bias=False)
        self.p2g = Linear(dim, 4 * dim, bias=False)
        self.c_norm = nn.LayerNorm(dim, eps=_EPSILON)
        self.g_norm = nn.LayerNorm(4 * dim, eps=_EPSILON)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[U, B, D]`` outputs of ``[U, B, input_dim]`` from the zero state."""
        hidden = cell = inputs.new_zeros(inputs.size(1), self.dim)
        outputs = []
        for gates in self.x2g(inputs).unbind(0):
            hidden, cell = self.step(gates, hidden, cell)
            outputs.append(hidden)
        return torch.stack(outputs)

    def step(self, gates: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden state and cell, ``[N, D]`` each, after ``[N, 4 D]`` input gates."""
        parts = self.g_norm(gates + self.p2g(hidden)).chunk(4, dim=1)
        keep, forget, out = (parts[index].sigmoid() for index in (0, 1, 3))
        cell = self.c_norm(forget * cell + keep * parts[2].tanh())
        return out * cell.tanh(), cell


class CellNormPredictor(nn.Module):
    """The prediction network of torchaudio's RNN-T, without its last projection.

    Args:
        vocab_size: Tokens V; blank, id 0, stands for the start.
        embedding_dim: Width of the embedding.
        num_layers: LSTM layers.
        dim: Cells per layer, the output width.
        dropout: Probability, on the output of every layer.
    """

    def __init__(
        self, *, vocab_size: int, embedding_dim: int, num_layers: int, dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.output_dim = dim
        self.embedding = make_embedding(vocab_size, embedding_dim)
        self.input_norm = nn.LayerNorm(embedding_dim)
        widths = [embedding_dim] + [dim] * (num_layers - 1)
        self.layers = nn.ModuleList(CellNormLstm(width, dim) for width in widths)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs before each of ``[B, U]`` int64 tokens and after the last: ``[B, U + 1, D]``."""
        outputs = self.input_norm(self.embedding(F.pad(tokens, (1, 0), value=BLANK).t()))
        for layer in self.layers:
            outputs = self.dropout(layer(outputs))
        transposed: Tensor = outputs.transpose(0, 1)
        return transposed

    def initial_state(self, rows: int) -> PredictorState:
        """The state before the start symbol, for ``rows`` hypotheses."""
        zeros = self.embedding.weight.new_zeros(rows, self.output_dim)
        return (zeros,) * (2 * len(self.layers))

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """``[N, D]`` output after ``[N]`` tokens in evaluation mode, and the next state."""
        outputs = self.input_norm(self.embedding(tokens))
        after: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, CellNormLstm)
            outputs, cell = layer.step(layer.x2g(outputs), state[2 * index], state[2 * index + 1])
            after += [outputs, cell]
        return outputs, tuple(after)


class NormalisedProjection(nn.Module):
    """A linear layer and a layer norm.

    Args:
        input_dim: Width of the input.
        output_dim: Width of the output.
    """

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.linear = Linear(input_dim, output_dim)
        self.norm = nn.LayerNorm(output_dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., output_dim]`` of ``[..., input_dim]``."""
        outputs: Tensor = self.norm(self.linear(inputs))
        return outputs
