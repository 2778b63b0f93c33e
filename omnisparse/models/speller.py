"""The LAS decoder: an LSTM makes the query, attention the context, LSTM layers read the context.

Legend: B batch, U tokens, K hypotheses, D model, A attention dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from omnisparse.models.attention import AttentionMemory, MultiHeadAttention
from omnisparse.models.dropout import Dropout
from omnisparse.models.lstm import LstmState, lstm_step, make_lstm, run_lstm, zero_state


class DecoderState(NamedTuple):
    """State of the decoder after some tokens."""

    layers: tuple[LstmState, ...]
    """One state per decoder layer, with a row per hypothesis."""

    def select(self, rows: Tensor) -> DecoderState:
        """The states of the given ``[N]`` int64 rows."""
        return DecoderState(tuple((hidden[rows], cell[rows]) for hidden, cell in self.layers))


class LasDecoder(nn.Module):
    """The speller: embedding, an LSTM that makes the query, and LSTM layers that read the context.

    Args:
        vocab_size: Tokens V.
        embedding_dim: Width of the embedding.
        num_layers: LSTM layers.
        dim: Cells per layer.
        projection: LSTMP width, None for plain LSTM layers.
        context_dim: Width of the attention's context.
        dropout: Probability, on the embedding and on the output of every layer.

    Deviation: Pang et al. 2018 feed the context back into the next step. Here the first layer
    reads only labels and makes the query, and the layers above read ``[output, context]``. So
    teacher forcing runs all tokens at once in fused kernels instead of a loop over U.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_dim: int,
        num_layers: int,
        dim: int,
        projection: int | None,
        context_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.output_dim = projection or dim
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        widths = [embedding_dim, self.output_dim + context_dim]
        widths += [self.output_dim] * max(0, num_layers - 2)
        self.layers = nn.ModuleList(make_lstm(w, dim, projection) for w in widths[:num_layers])
        self.dropout = Dropout(dropout)

    def forward(
        self, tokens: Tensor, attention: MultiHeadAttention, memory: AttentionMemory
    ) -> Tensor:
        """Decode ``[B, U]`` int64 previous tokens: ``[B, U, D + A]`` states with contexts."""
        first, *others = self.layers
        assert isinstance(first, nn.LSTM)
        states, _ = run_lstm(first, self.dropout(self.embedding(tokens.transpose(0, 1))))
        states = self.dropout(states)
        context = attention(states.transpose(0, 1), memory).transpose(0, 1)
        inputs = torch.cat([states, context], dim=-1)
        for layer in others:
            assert isinstance(layer, nn.LSTM)
            states, _ = run_lstm(layer, inputs)
            inputs = states = self.dropout(states)
        return torch.cat([states, context], dim=-1).transpose(0, 1)

    def initial_state(self, rows: int) -> DecoderState:
        """The state before the first token, for ``rows`` hypotheses."""
        return DecoderState(
            tuple(zero_state(layer, rows) for layer in self.layers)  # type: ignore[arg-type]
        )

    def step(
        self,
        tokens: Tensor,
        state: DecoderState,
        attention: MultiHeadAttention,
        memory: AttentionMemory,
    ) -> tuple[Tensor, DecoderState]:
        """One token for K hypotheses of each utterance, in evaluation mode.

        Args:
            tokens: ``[B * K]`` int64 previous tokens, the hypotheses of an utterance together.
            state: State with B * K rows.
            attention: The model's attention.
            memory: Memory of the B utterances.

        Returns:
            ``[B * K, D + A]`` states with contexts, and the next state.
        """
        first, *others = self.layers
        assert isinstance(first, nn.LSTM)
        output, first_state = lstm_step(first, self.embedding(tokens), state.layers[0])
        states = [first_state]
        batch = memory.keys.size(0) // attention.heads
        # The K hypotheses of an utterance are K queries, so its memory is never copied.
        queries = rearrange(output, "(batch beam) width -> batch beam width", batch=batch)
        context = rearrange(attention(queries, memory), "batch beam width -> (batch beam) width")
        inputs = torch.cat([output, context], dim=-1)
        for layer, before in zip(others, state.layers[1:], strict=True):
            assert isinstance(layer, nn.LSTM)
            output, after = lstm_step(layer, inputs, before)
            inputs = output
            states.append(after)
        return torch.cat([output, context], dim=-1), DecoderState(tuple(states))
