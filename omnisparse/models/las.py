"""Listen, attend and spell: unidirectional LSTM encoder, multi-head attention, LSTM decoder.

Legend: B batch, T feature frames, T' encoder frames, U tokens, F features, D model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnisparse.models.attention import AttentionMemory, MultiHeadAttention
from omnisparse.models.base import SOS_EOS, Hypothesis, ModelOutput, SpeechModel
from omnisparse.models.decoding import las_beam_search, las_greedy_search
from omnisparse.models.encoder import EncoderState
from omnisparse.models.losses import ctc_loss, label_smoothed_cross_entropy, length_mask
from omnisparse.models.lstm import (
    LstmEncoder,
    LstmState,
    lstm_step,
    make_lstm,
    num_reductions,
    run_lstm,
    zero_state,
)
from omnisparse.models.validation import (
    check_fraction,
    check_multiple,
    check_positive,
    check_projection,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LasConfig:
    """Shape of a LAS model; the defaults have 3.3 M parameters with 240 features, 128 pieces."""

    kind: Literal["las"] = "las"
    """Selects this model in a configuration file."""

    encoder_layers: int = 3
    """LSTM layers of the encoder."""

    encoder_dim: int = 256
    """Cells of each encoder layer."""

    encoder_projection: int | None = None
    """LSTMP width of the encoder, below ``encoder_dim``; None for plain LSTM layers."""

    time_reduction: int = 2
    """Feature frames per encoder frame: a power of two, at most 2^(encoder_layers - 1)."""

    attention_heads: int = 4
    """Attention heads."""

    attention_dim: int = 256
    """Width of all heads together, a multiple of ``attention_heads``."""

    decoder_layers: int = 2
    """LSTM layers of the decoder."""

    decoder_dim: int = 256
    """Cells of each decoder layer."""

    decoder_projection: int | None = None
    """LSTMP width of the decoder, below ``decoder_dim``; None for plain LSTM layers."""

    embedding_dim: int = 128
    """Width of the token embedding."""

    dropout: float = 0.1
    """Dropout after every encoder and decoder layer, in [0, 1)."""

    label_smoothing: float = 0.1
    """Share of the uniform distribution in the targets, in [0, 1)."""

    layer_norm: bool = True
    """Normalise the output of every encoder layer."""

    ctc_weight: float = 0.0
    """Share of the label loss that is CTC on the encoder, in [0, 1); above 0 the encoder gets an
    output layer for it. It helps attention find its way on little or varied speech."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        check_positive(
            self,
            "encoder_layers encoder_dim attention_heads attention_dim decoder_layers decoder_dim "
            "embedding_dim",
        )
        check_projection(self, "encoder")
        check_projection(self, "decoder")
        check_fraction(self, "dropout label_smoothing ctc_weight")
        num_reductions(self.time_reduction, self.encoder_layers)
        check_multiple(self, "attention_dim", "attention_heads")


class DecoderState(NamedTuple):
    """Where the decoder stands after some tokens."""

    layers: tuple[LstmState, ...]
    """One state per decoder layer, with a row per hypothesis."""

    def select(self, rows: Tensor) -> DecoderState:
        """The states of the given ``[N]`` int64 rows."""
        return DecoderState(tuple((hidden[rows], cell[rows]) for hidden, cell in self.layers))


class LasDecoder(nn.Module):
    """The speller: embedding, an LSTM that asks, and LSTM layers that read the answer.

    Args:
        vocab_size: Tokens V.
        embedding_dim: Width of the embedding.
        num_layers: LSTM layers.
        dim: Cells per layer.
        projection: LSTMP width, None for plain LSTM layers.
        context_dim: Width of the attention's answer.
        dropout: Probability, on the embedding and on the output of every layer.

    Deviation: Pang et al. 2018 feed the context back into the next step. Here the first layer
    reads labels only and asks, and the layers above read ``[output, context]``, so that teacher
    forcing runs all tokens at once in fused kernels instead of a loop over U.
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
        self.dropout = nn.Dropout(dropout)

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
        context = attention(output.view(batch, -1, output.size(-1)), memory).flatten(0, 1)
        inputs = torch.cat([output, context], dim=-1)
        for layer, before in zip(others, state.layers[1:], strict=True):
            assert isinstance(layer, nn.LSTM)
            output, after = lstm_step(layer, inputs, before)
            inputs = output
            states.append(after)
        return torch.cat([output, context], dim=-1), DecoderState(tuple(states))


class LasModel(SpeechModel):
    """A LAS recogniser with parameters under ``encoder``, ``attention``, ``decoder``, ``output``.

    Args:
        input_dim: Width F of the features.
        vocab_size: Tokens V, counting blank (unused here), sentence mark and unknown.
        encoder_layers: See :class:`LasConfig`, as all that follow.
        encoder_dim: Cells per encoder layer.
        encoder_projection: LSTMP width or None.
        time_reduction: Feature frames per encoder frame.
        attention_heads: Heads.
        attention_dim: Width of all heads together.
        decoder_layers: Decoder layers.
        decoder_dim: Cells per decoder layer.
        decoder_projection: LSTMP width or None.
        embedding_dim: Width of the embedding.
        dropout: Probability in [0, 1).
        label_smoothing: Share in [0, 1).
        layer_norm: Normalise encoder layers.
        ctc_weight: Share in [0, 1).

    Source: Pang et al. 2018, section 2, after Chan et al. 2016, arXiv:1508.01211.
    """

    kind: ClassVar[str] = "las"

    def __init__(
        self,
        *,
        input_dim: int,
        vocab_size: int,
        encoder_layers: int = 3,
        encoder_dim: int = 256,
        encoder_projection: int | None = None,
        time_reduction: int = 2,
        attention_heads: int = 4,
        attention_dim: int = 256,
        decoder_layers: int = 2,
        decoder_dim: int = 256,
        decoder_projection: int | None = None,
        embedding_dim: int = 128,
        dropout: float = 0.1,
        label_smoothing: float = 0.1,
        layer_norm: bool = True,
        ctc_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.vocab_size = vocab_size
        self.label_smoothing = label_smoothing
        self.encoder = LstmEncoder(
            input_dim=input_dim,
            num_layers=encoder_layers,
            dim=encoder_dim,
            projection=encoder_projection,
            time_reduction=time_reduction,
            dropout=dropout,
            layer_norm=layer_norm,
        )
        self.decoder = LasDecoder(
            vocab_size=vocab_size,
            embedding_dim=embedding_dim,
            num_layers=decoder_layers,
            dim=decoder_dim,
            projection=decoder_projection,
            context_dim=attention_dim,
            dropout=dropout,
        )
        self.attention = MultiHeadAttention(
            query_dim=self.decoder.output_dim,
            memory_dim=self.encoder.output_dim,
            dim=attention_dim,
            heads=attention_heads,
        )
        self.output = nn.Linear(self.decoder.output_dim + attention_dim, vocab_size)
        self.ctc_weight = ctc_weight
        self.ctc_output = nn.Linear(self.encoder.output_dim, vocab_size) if ctc_weight else None

    def output_lengths(self, feature_lengths: Tensor) -> Tensor:
        """Encoder frames for ``[B]`` feature lengths."""
        return self.encoder.output_lengths(feature_lengths)

    def encode(self, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T', D]`` encodings of ``[B, T, F]`` features, and ``[B]`` lengths."""
        encoded, lengths = self.encoder(features, feature_lengths)
        return encoded, lengths

    def initial_state(self, batch: int) -> EncoderState:
        """The encoder's state before the first chunk of ``batch`` streams."""
        return self.encoder.initial_state(batch)

    def encode_chunk(
        self, features: Tensor, state: EncoderState, *, final: bool = False
    ) -> tuple[Tensor, EncoderState]:
        """Encode the next ``[B, T, F]`` chunk of a stream; see ``Encoder.forward_chunk``."""
        return self.encoder.forward_chunk(features, state, final=final)

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> ModelOutput:
        """Label-smoothed cross-entropy of tokens and end mark; see :class:`SpeechModel`.

        With ``ctc_weight`` w the label loss is (1 - w) times that plus w times CTC on the encoder
        (Kim et al. 2017, arXiv:1609.06773, eq. 9); the posteriors are the decoder's in any case.
        ``log_posteriors`` is ``[B, U + 1, V]``, where U is the padded width of ``tokens``.
        """
        encoded, lengths = self.encode(features, feature_lengths)
        memory = self.attention.memory(encoded, lengths)
        previous = F.pad(tokens, (1, 0), value=SOS_EOS)
        states = self.decoder(previous, self.attention, memory)
        log_probs = torch.log_softmax(self.output(states).float(), dim=-1)
        mask = length_mask(token_lengths + 1, previous.size(1))
        ends = length_mask(token_lengths, previous.size(1))
        targets = F.pad(tokens, (0, 1)).masked_fill(~ends, SOS_EOS)
        loss = label_smoothed_cross_entropy(
            log_probs, targets, mask, smoothing=self.label_smoothing
        )
        if self.ctc_output is not None:
            ctc = ctc_loss(self.ctc_output(encoded), tokens, lengths, token_lengths)
            loss = (1 - self.ctc_weight) * loss + self.ctc_weight * ctc
        return ModelOutput(
            label_loss_sum=loss,
            num_units=(token_lengths + 1).sum().float(),
            log_posteriors=log_probs,
            posterior_weights=mask.float(),
            encoder_outputs=encoded,
            encoder_lengths=lengths,
        )

    def next_log_probs(
        self, tokens: Tensor, state: DecoderState, memory: AttentionMemory
    ) -> tuple[Tensor, DecoderState]:
        """``[N, V]`` float32 log-probabilities after ``[N]`` tokens, and the next state."""
        states, state = self.decoder.step(tokens, state, self.attention, memory)
        return torch.log_softmax(self.output(states).float(), dim=-1), state

    @torch.inference_mode()
    def greedy(self, features: Tensor, feature_lengths: Tensor) -> list[list[int]]:
        """Batched greedy decoding; see :class:`SpeechModel`."""
        encoded, lengths = self.encode(features, feature_lengths)
        return las_greedy_search(self, encoded, lengths)

    @torch.inference_mode()
    def nbest(
        self, features: Tensor, feature_lengths: Tensor, *, beam: int
    ) -> list[list[Hypothesis]]:
        """Batched beam search; see :class:`SpeechModel`."""
        encoded, lengths = self.encode(features, feature_lengths)
        return las_beam_search(self, encoded, lengths, beam=beam)
