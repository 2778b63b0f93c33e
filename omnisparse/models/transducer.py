"""Streaming transducer: unidirectional LSTM encoder, predictor, joiner.

Legend: B batch, T feature frames, T' encoder frames, U tokens, F features, D model, J joiner,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnisparse.models.base import BLANK, Hypothesis, ModelOutput, SpeechModel
from omnisparse.models.lattice import join_lattice
from omnisparse.models.losses import ctc_loss, lattice_weights, transducer_loss
from omnisparse.models.lstm import (
    EncoderState,
    LstmEncoder,
    lstm_step,
    make_lstm,
    num_reductions,
    run_lstm,
    zero_state,
)
from omnisparse.models.transducer_decoding import (
    transducer_beam_search,
    transducer_greedy_search,
)
from omnisparse.models.validation import check_fraction, check_positive, check_projection

CONTEXT_SIZE = 2
"""Tokens that the stateless predictor sees."""

PredictorState = tuple[Tensor, ...]
"""Tensors whose first dimension counts hypotheses; what they are is the predictor's affair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransducerConfig:
    """Shape of a transducer; the defaults have 2.4 M parameters with 240 features, 128 pieces."""

    kind: Literal["transducer"] = "transducer"
    """Selects this model in a configuration file."""

    encoder_layers: int = 3
    """LSTM layers of the encoder."""

    encoder_dim: int = 256
    """Cells of each encoder layer."""

    encoder_projection: int | None = None
    """LSTMP width of the encoder, below ``encoder_dim``; None for plain LSTM layers."""

    time_reduction: int = 2
    """Feature frames per encoder frame: a power of two, at most 2^(encoder_layers - 1)."""

    predictor_layers: int = 1
    """LSTM layers of the predictor; 0 for the stateless one, which sees the last two tokens."""

    predictor_dim: int = 256
    """Cells of each predictor layer, or output width of the stateless predictor."""

    embedding_dim: int = 128
    """Width of the token embedding."""

    joiner_dim: int = 256
    """Width in which encoder and predictor are added."""

    dropout: float = 0.1
    """Dropout after every encoder and predictor layer, in [0, 1)."""

    layer_norm: bool = True
    """Normalise the output of every encoder and predictor layer."""

    predictor_warmup: int = 250
    """First optimizer steps, which train without the predictor; see :class:`TransducerModel`."""

    ctc_weight: float = 0.0
    """Share of the label loss that is CTC on the encoder, in [0, 1); above 0 the encoder gets an
    output layer for it, and CTC is all that trains during ``predictor_warmup``."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        check_positive(self, "encoder_layers encoder_dim predictor_dim embedding_dim joiner_dim")
        check_positive(self, "predictor_layers predictor_warmup", minimum=0)
        check_projection(self, "encoder")
        check_fraction(self, "dropout ctc_weight")
        num_reductions(self.time_reduction, self.encoder_layers)


class LstmPredictor(nn.Module):
    """The prediction network: embedding and LSTM layers over the tokens so far.

    Args:
        vocab_size: Tokens V; blank, id 0, stands for the start.
        embedding_dim: Width of the embedding.
        num_layers: LSTM layers.
        dim: Cells per layer, the output width.
        dropout: Probability, on the embedding and on the output of every layer.
        layer_norm: Normalise the output of every layer.
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
    ) -> None:
        super().__init__()
        self.output_dim = dim
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        widths = [embedding_dim] + [dim] * (num_layers - 1)
        self.layers = nn.ModuleList(make_lstm(width, dim) for width in widths)
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if layer_norm else nn.Identity() for _ in widths
        )
        self.dropout = nn.Dropout(dropout)

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
    """A predictor that sees the last two tokens only: cheap, and without recurrent state.

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
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.context = nn.Linear(CONTEXT_SIZE * embedding_dim, dim)
        self.dropout = nn.Dropout(dropout)

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


class Joiner(nn.Module):
    """Adds encoder and predictor and scores the next token.

    Args:
        encoder_dim: Width of the encoder's output.
        predictor_dim: Width of the predictor's output.
        dim: Width J of the sum.
        vocab_size: Tokens V with blank.

    Source: Graves et al. 2013, arXiv:1303.5778, eqs. 15-18, for the additive joint network.
    """

    def __init__(self, *, encoder_dim: int, predictor_dim: int, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_projection = nn.Linear(encoder_dim, dim)
        self.predictor_projection = nn.Linear(predictor_dim, dim, bias=False)
        self.output = nn.Linear(dim, vocab_size)

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
        )

    def score(self, total: Tensor) -> Tensor:
        """Logits ``[..., V]`` of fresh sums ``[..., J]``, which are overwritten."""
        logits: Tensor = self.output(total.tanh_())
        return logits


class TransducerModel(SpeechModel):
    """A transducer with parameters under ``encoder``, ``predictor``, ``joiner``.

    Args:
        input_dim: Width F of the features.
        vocab_size: Tokens V, counting blank, sentence mark (unused here) and unknown.
        encoder_layers: See :class:`TransducerConfig`, as all that follow.
        encoder_dim: Cells per encoder layer.
        encoder_projection: LSTMP width or None.
        time_reduction: Feature frames per encoder frame.
        predictor_layers: LSTM layers, 0 for the stateless predictor.
        predictor_dim: Output width of the predictor.
        embedding_dim: Width of the embedding.
        joiner_dim: Width of the joiner.
        dropout: Probability in [0, 1).
        layer_norm: Normalise encoder and predictor layers.
        predictor_warmup: Steps (see :meth:`set_step`) that train without the predictor.
        ctc_weight: Share in [0, 1).

    Source: Graves 2012, arXiv:1211.3711; He et al. 2018, arXiv:1811.06621, for the streaming
    LSTM encoder with time reduction. Choice: in a closed domain the predictor alone soon models
    the sentences well, and the encoder, whose timing then earns nothing, stays unused (2 h of
    commands, 400 steps: 95 % WER; with the predictor left out for 250 of them: 51 %).
    """

    kind: ClassVar[str] = "transducer"

    def __init__(
        self,
        *,
        input_dim: int,
        vocab_size: int,
        encoder_layers: int = 3,
        encoder_dim: int = 256,
        encoder_projection: int | None = None,
        time_reduction: int = 2,
        predictor_layers: int = 1,
        predictor_dim: int = 256,
        embedding_dim: int = 128,
        joiner_dim: int = 256,
        dropout: float = 0.1,
        layer_norm: bool = True,
        predictor_warmup: int = 250,
        ctc_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.vocab_size = vocab_size
        self.predictor_warmup = predictor_warmup
        self._step = predictor_warmup
        self.encoder = LstmEncoder(
            input_dim=input_dim,
            num_layers=encoder_layers,
            dim=encoder_dim,
            projection=encoder_projection,
            time_reduction=time_reduction,
            dropout=dropout,
            layer_norm=layer_norm,
        )
        self.predictor: LstmPredictor | StatelessPredictor
        if predictor_layers:
            self.predictor = LstmPredictor(
                vocab_size=vocab_size,
                embedding_dim=embedding_dim,
                num_layers=predictor_layers,
                dim=predictor_dim,
                dropout=dropout,
                layer_norm=layer_norm,
            )
        else:
            self.predictor = StatelessPredictor(
                vocab_size=vocab_size,
                embedding_dim=embedding_dim,
                dim=predictor_dim,
                dropout=dropout,
            )
        self.joiner = Joiner(
            encoder_dim=self.encoder.output_dim,
            predictor_dim=predictor_dim,
            dim=joiner_dim,
            vocab_size=vocab_size,
        )
        self.ctc_weight = ctc_weight
        self.ctc_output = nn.Linear(self.encoder.output_dim, vocab_size) if ctc_weight else None

    def set_step(self, step: int) -> None:
        """Tell the model which optimizer step comes next; see :class:`SpeechModel`."""
        self._step = step

    def skip_phases(self) -> None:
        """Train with the predictor from the first step on; see :class:`SpeechModel`."""
        self.predictor_warmup = 0

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
        """Encode the next ``[B, T, F]`` chunk of a stream; see ``LstmEncoder.forward_chunk``."""
        return self.encoder.forward_chunk(features, state, final=final)

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> ModelOutput:
        """Transducer loss and collapsed lattice; see :class:`SpeechModel`.

        With ``ctc_weight`` w the label loss is (1 - w) times that plus w times CTC on the encoder.
        ``log_posteriors`` is ``[B, T', U + 1, 3]`` (label, blank, rest), with T' and U the
        longest lengths of the batch, and ``posterior_weights`` is ``[B, T', U + 1]``. While CTC
        alone trains, both have one node and the weights are 0: there is nothing to distil yet.
        """
        encoded, lengths = self.encode(features, feature_lengths)
        # torchaudio's loss refuses tensors that are longer than the longest length.
        encoded = encoded[:, : int(lengths.max())]
        tokens = tokens[:, : int(token_lengths.max())]
        num_units = (token_lengths + 1).sum().float()
        warming_up = self.training and self._step < self.predictor_warmup
        ctc = None
        if self.ctc_output is not None:
            ctc = ctc_loss(self.ctc_output(encoded), tokens, lengths, token_lengths)
            if warming_up:
                # Distributed training wants a gradient, here zero, of every parameter.
                idle = (*self.predictor.parameters(), *self.joiner.parameters())
                node = encoded.new_zeros(encoded.size(0), 1, 1, 3, dtype=torch.float32)
                return ModelOutput(
                    label_loss_sum=ctc + 0.0 * sum(weight.sum() for weight in idle),
                    num_units=num_units,
                    log_posteriors=torch.log_softmax(node, dim=-1),
                    posterior_weights=node[..., 0],
                )
        predicted = self.predictor(tokens)
        if warming_up:
            predicted = predicted * 0.0  # not skipped, for the same reason
        lattice = self.joiner(encoded, predicted, tokens, lengths, token_lengths)
        loss = transducer_loss(lattice, lengths, token_lengths)
        if ctc is not None:
            loss = (1 - self.ctc_weight) * loss + self.ctc_weight * ctc
        return ModelOutput(
            label_loss_sum=loss,
            num_units=num_units,
            log_posteriors=lattice,
            posterior_weights=lattice_weights(lengths, token_lengths, lattice),
        )

    @torch.inference_mode()
    def greedy(self, features: Tensor, feature_lengths: Tensor) -> list[list[int]]:
        """Batched greedy decoding; see :class:`SpeechModel`."""
        encoded, lengths = self.encode(features, feature_lengths)
        found, _ = transducer_greedy_search(self, encoded, lengths)
        return found

    @torch.inference_mode()
    def nbest(
        self, features: Tensor, feature_lengths: Tensor, *, beam: int
    ) -> list[list[Hypothesis]]:
        """Batched time-synchronous beam search; see :class:`SpeechModel`."""
        encoded, lengths = self.encode(features, feature_lengths)
        return transducer_beam_search(self, encoded, lengths, beam=beam)
