"""Listen, attend and spell: unidirectional LSTM encoder, multi-head attention, LSTM decoder.

Legend: B batch, T feature frames, T' encoder frames, U tokens, F features, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from omnisparse.errors import PositiveInt, Probability, check_ranges
from omnisparse.models.attention import AttentionMemory, MultiHeadAttention
from omnisparse.models.base import SOS_EOS, Hypothesis, ModelOutput, SpeechModel
from omnisparse.models.decoding import NextLogProbs, las_beam_search, las_greedy_search
from omnisparse.models.losses import ctc_loss, label_smoothed_cross_entropy, length_mask
from omnisparse.models.lstm import LstmEncoder, num_reductions
from omnisparse.models.products_bf16 import Linear
from omnisparse.models.speller import DecoderState, LasDecoder
from omnisparse.models.validation import RankScheme, check_multiple, check_projection, check_ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class LasConfig:
    """Shape of a LAS model; the defaults have 3.3 M parameters with 240 features, 128 pieces."""

    kind: Literal["las"] = "las"
    """Selects this model in a configuration file."""

    encoder_layers: PositiveInt = 3
    """LSTM layers of the encoder."""

    encoder_dim: PositiveInt = 256
    """Cells of each encoder layer."""

    encoder_projection: PositiveInt | None = None
    """LSTMP width of the encoder, below ``encoder_dim``; None for plain LSTM layers."""

    time_reduction: PositiveInt = 2
    """Feature frames per encoder frame: a power of two, at most 2^(encoder_layers - 1)."""

    attention_heads: PositiveInt = 4
    """Attention heads."""

    attention_dim: PositiveInt = 256
    """Width of all heads together, a multiple of ``attention_heads``."""

    attention: Literal["dot", "additive"] = "dot"
    """Score of a frame: a scaled dot product, or additive (Bahdanau). Additive scores take
    ``attention_dim`` times the memory in training."""

    context_input: Literal["upper_layers", "first_layer"] = "upper_layers"
    """What reads the attention's context. ``first_layer``, as in the paper: the first decoder
    layer, with the embedding, at the next step; the last layer makes the query. Training is slower,
    a step for each token. ``upper_layers``: the second layer, at the same step; the first layer
    reads labels alone and makes the query."""

    decoder_layers: PositiveInt = 2
    """LSTM layers of the decoder."""

    decoder_dim: PositiveInt = 256
    """Cells of each decoder layer."""

    decoder_projection: PositiveInt | None = None
    """LSTMP width of the decoder, below ``decoder_dim``; None for plain LSTM layers."""

    embedding_dim: PositiveInt = 128
    """Width of the token embedding."""

    dropout: Probability = 0.1
    """Dropout after every encoder and decoder layer."""

    label_smoothing: Probability = 0.1
    """Share of the uniform distribution in the targets."""

    layer_norm: bool = True
    """Normalise the output of every encoder layer."""

    ctc_weight: Probability = 0.0
    """Share of the label loss that is CTC on the encoder; above 0 the encoder gets an
    output layer for it. It helps attention to align when speech is scarce or varied."""

    ranks: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Rank of every matrix that is a product of two factors; see `omnisparse.models.factored`."""

    rank_scheme: RankScheme = "stacked"
    """``per_gate`` and ``joint`` make other products of LSTM layers."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        check_ranges(self)
        check_ranks(self.ranks, self.rank_scheme)
        check_projection(self, "encoder")
        check_projection(self, "decoder")
        num_reductions(self.time_reduction, self.encoder_layers)
        check_multiple(self, "attention_dim", "attention_heads")


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
        attention: Kind of score.
        context_input: What reads the context.
        decoder_layers: Decoder layers.
        decoder_dim: Cells per decoder layer.
        decoder_projection: LSTMP width or None.
        embedding_dim: Width of the embedding.
        dropout: Probability in [0, 1).
        label_smoothing: Share in [0, 1).
        layer_norm: Normalise encoder layers.
        ctc_weight: Share in [0, 1).

    Source: Pang et al. 2018, section 2, after Chan et al. 2016, arXiv:1508.01211: with
    ``context_input="first_layer"`` and ``attention="additive"``.
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
        attention: Literal["dot", "additive"] = "dot",
        context_input: Literal["upper_layers", "first_layer"] = "upper_layers",
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
            feeds_context=context_input == "first_layer",
        )
        self.attention = MultiHeadAttention(
            query_dim=self.decoder.output_dim,
            memory_dim=self.encoder.output_dim,
            dim=attention_dim,
            heads=attention_heads,
            additive=attention == "additive",
        )
        self.output = Linear(self.decoder.output_dim + attention_dim, vocab_size)
        self.ctc_weight = ctc_weight
        self.ctc_output = self.new_ctc_output() if ctc_weight else None

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> ModelOutput:
        """Label-smoothed cross-entropy of tokens and end mark; see :class:`SpeechModel`.

        With ``ctc_weight`` w the label loss is (1 - w) times that plus w times CTC on the encoder
        (Kim et al. 2017, arXiv:1609.06773, eq. 9); the posteriors are always the decoder's.
        ``log_posteriors`` is ``[B, U + 1, V]``, where U is the padded width of ``tokens``.
        """
        num_units = (token_lengths + 1).sum().float()
        feature_lengths, token_lengths = (
            lengths.to(features.device, non_blocking=True)
            for lengths in (feature_lengths, token_lengths)
        )
        encoded, lengths = self.encode(features, feature_lengths)
        memory = self.attention.memory(encoded, lengths)
        previous = F.pad(tokens, (1, 0), value=SOS_EOS)
        states = self.decoder(previous, self.attention, memory)
        log_probs = torch.log_softmax(self.output(states).float(), dim=-1)
        mask = length_mask(token_lengths + 1, previous.size(1))
        loss = log_probs.new_tensor(float("nan"))
        if self.has_label_loss:
            ends = length_mask(token_lengths, previous.size(1))
            targets = F.pad(tokens, (0, 1)).masked_fill(~ends, SOS_EOS)
            loss = label_smoothed_cross_entropy(
                log_probs, targets, mask, smoothing=self.label_smoothing
            )
        weighted_ctc = None
        if self.has_label_loss and self.ctc_output is not None:
            ctc = ctc_loss(self.ctc_output(encoded), tokens, lengths, token_lengths)
            weighted_ctc = self.ctc_weight * ctc
            loss = (1 - self.ctc_weight) * loss + weighted_ctc
        return ModelOutput(
            label_loss_sum=loss,
            num_units=num_units,
            log_posteriors=log_probs,
            posterior_weights=mask.float(),
            encoder_outputs=encoded,
            encoder_lengths=lengths,
            ctc_loss_sum=weighted_ctc,
        )

    def next_log_probs(
        self, tokens: Tensor, state: DecoderState, memory: AttentionMemory
    ) -> tuple[Tensor, DecoderState]:
        """``[N, V]`` float32 log-probabilities after ``[N]`` tokens, and the next state."""
        states, state = self.decoder.step(tokens, state, self.attention, memory)
        return torch.log_softmax(self.output(states).float(), dim=-1), state

    def search_greedily(self, encoded: Tensor, lengths: Tensor) -> list[list[int]]:
        """See :class:`SpeechModel`."""
        state = self.decoder.initial_state(encoded.size(0))
        return las_greedy_search(self._speller(encoded, lengths), state, lengths)

    def search_beam(self, encoded: Tensor, lengths: Tensor, *, beam: int) -> list[list[Hypothesis]]:
        """See :class:`SpeechModel`."""
        state = self.decoder.initial_state(encoded.size(0) * beam)
        return las_beam_search(self._speller(encoded, lengths), state, lengths, beam=beam)

    def _speller(self, encoded: Tensor, lengths: Tensor) -> NextLogProbs[DecoderState]:
        """The function that scores the next token of these utterances."""
        memory = self.attention.memory(encoded, lengths)
        return lambda tokens, state: self.next_log_probs(tokens, state, memory)
