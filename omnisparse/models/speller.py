"""The LAS decoder: an LSTM that attends to the encoder's frames.

Legend: B batch, U tokens, K hypotheses, D model, A attention dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from omnisparse.models.attention import AttentionMemory, MultiHeadAttention
from omnisparse.models.dropout import Dropout
from omnisparse.models.embedding import make_embedding
from omnisparse.models.lstm import LstmState, lstm_step, make_lstm, run_lstm, zero_state


class DecoderState(NamedTuple):
    """State of the decoder after some tokens."""

    layers: tuple[LstmState, ...]
    """One state per decoder layer, with a row per hypothesis."""

    context: Tensor | None = None
    """``[N, A]``: where the attention looked for the last token, if the first layer reads it."""

    def select(self, rows: Tensor) -> DecoderState:
        """The states of the given ``[N]`` int64 rows."""
        layers = tuple((hidden[rows], cell[rows]) for hidden, cell in self.layers)
        return DecoderState(layers, None if self.context is None else self.context[rows])


class LasDecoder(nn.Module):
    """The speller: embedding, LSTM layers, and where they read the attention's context.

    With ``feeds_context`` the first layer reads the embedding of the last token and the context of
    the last step; the last layer makes the query, whose context goes with it to the output. So the
    query knows where the attention has been. Training takes a step for each token.

    Otherwise the first layer reads labels alone and makes the query, and the second layer reads its
    output and the context. So training runs all tokens at once, in fused kernels.

    Args:
        vocab_size: Tokens V.
        embedding_dim: Width of the embedding.
        num_layers: LSTM layers.
        dim: Cells per layer.
        projection: LSTMP width, None for plain LSTM layers.
        context_dim: Width of the attention's context.
        dropout: Probability, on the embedding and on the output of every layer.
        feeds_context: Whether the first layer reads the context of the last step.

    Source: Chan et al. 2016, arXiv:1508.01211, eqs. 6 to 8; Pang et al. 2018, section 2.
    Deviation: without ``feeds_context`` the context reaches no later step.
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
        feeds_context: bool = False,
    ) -> None:
        super().__init__()
        self.output_dim = projection or dim
        self.context_dim = context_dim
        self.feeds_context = feeds_context
        self.embedding = make_embedding(vocab_size, embedding_dim)
        widths = [embedding_dim, *[self.output_dim] * (num_layers - 1)]
        reads_context = 0 if feeds_context else 1
        if reads_context < num_layers:
            widths[reads_context] += context_dim
        self.layers = nn.ModuleList(make_lstm(w, dim, projection) for w in widths)
        self.dropout = Dropout(dropout)

    def forward(
        self, tokens: Tensor, attention: MultiHeadAttention, memory: AttentionMemory
    ) -> Tensor:
        """Decode ``[B, U]`` int64 previous tokens: ``[B, U, D + A]`` states with contexts."""
        if self.feeds_context:
            return self._forward_by_steps(tokens, attention, memory)
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

    def _forward_by_steps(
        self, tokens: Tensor, attention: MultiHeadAttention, memory: AttentionMemory
    ) -> Tensor:
        """The same, where each step reads the context of the one before."""
        embedded = self.dropout(self.embedding(tokens.transpose(0, 1)))
        state = self.initial_state(tokens.size(0))
        outputs = []
        for inputs in embedded.unbind(0):
            output, state = self._feed(inputs, state, attention, memory)
            outputs.append(output)
        return torch.stack(outputs, dim=1)

    def _feed(
        self,
        embedded: Tensor,
        state: DecoderState,
        attention: MultiHeadAttention,
        memory: AttentionMemory,
    ) -> tuple[Tensor, DecoderState]:
        """One step of ``feeds_context``: ``[N, D + A]`` of ``[N, E]`` embeddings, and the state."""
        assert state.context is not None
        output = torch.cat([embedded, state.context.to(embedded.dtype)], dim=-1)
        states = []
        for layer, before in zip(self.layers, state.layers, strict=True):
            assert isinstance(layer, nn.LSTM)
            output, after = lstm_step(layer, output, before)
            output = self.dropout(output)
            states.append(after)
        context = self._attend(output, attention, memory)
        return torch.cat([output, context], dim=-1), DecoderState(tuple(states), context)

    def _attend(
        self, output: Tensor, attention: MultiHeadAttention, memory: AttentionMemory
    ) -> Tensor:
        """``[B * K, A]`` contexts of K hypotheses of each utterance.

        They are K queries of one memory, which is never copied.
        """
        batch = memory.keys.size(0) // attention.heads
        queries = rearrange(output, "(batch beam) width -> batch beam width", batch=batch)
        context: Tensor = rearrange(
            attention(queries, memory), "batch beam width -> (batch beam) width"
        )
        return context

    def initial_state(self, rows: int) -> DecoderState:
        """The state before the first token, for ``rows`` hypotheses."""
        layers = tuple(zero_state(layer, rows) for layer in self.layers)  # type: ignore[arg-type]
        context = None
        if self.feeds_context:
            context = layers[0][1].new_zeros(rows, self.context_dim)
        return DecoderState(layers, context)

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
        embedded = self.embedding(tokens)
        if self.feeds_context:
            return self._feed(embedded, state, attention, memory)
        first, *others = self.layers
        assert isinstance(first, nn.LSTM)
        output, first_state = lstm_step(first, embedded, state.layers[0])
        states = [first_state]
        context = self._attend(output, attention, memory)
        inputs = torch.cat([output, context], dim=-1)
        for layer, before in zip(others, state.layers[1:], strict=True):
            assert isinstance(layer, nn.LSTM)
            output, after = lstm_step(layer, inputs, before)
            inputs = output
            states.append(after)
        return torch.cat([output, context], dim=-1), DecoderState(tuple(states))
