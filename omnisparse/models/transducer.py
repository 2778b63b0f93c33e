"""Streaming transducer: LSTM, Emformer or Conformer encoder, predictor, joiner.

Legend: B batch, T feature frames, T' encoder frames, U tokens, F features, D model, J joiner,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from omnisparse.errors import NonNegativeInt, PositiveInt, Probability, Range, check_ranges
from omnisparse.models.base import Hypothesis, ModelOutput, SpeechModel
from omnisparse.models.cell_norm import CellNormPredictor
from omnisparse.models.conformer import ConformerEncoder
from omnisparse.models.emformer import EmformerEncoder
from omnisparse.models.encoder import Encoder
from omnisparse.models.joiner import Joiner
from omnisparse.models.losses import ctc_loss, lattice_weights, transducer_loss
from omnisparse.models.lstm import LstmEncoder, num_reductions
from omnisparse.models.predictor import LstmPredictor, StatelessPredictor
from omnisparse.models.transducer_decoding import transducer_beam_search, transducer_greedy_search
from omnisparse.models.validation import RankScheme, check_multiple, check_projection, check_ranks

EncoderKind = Literal["lstm", "emformer", "conformer"]
Family = Literal["omnisparse", "torchaudio", "nemo"]
Predictor = LstmPredictor | StatelessPredictor | CellNormPredictor

_ENCODER_KEYS: dict[str, tuple[EncoderKind, ...]] = {
    "encoder_projection": ("lstm",),
    "encoder_heads": ("emformer", "conformer"),
    "encoder_feed_forward": ("emformer", "conformer"),
    "encoder_kernel": ("conformer",),
    "segment": ("emformer", "conformer"),
    "left_context": ("emformer", "conformer"),
    "right_context": ("emformer",),
    "family": ("emformer", "lstm"),
}
"""Keys that only some encoders have."""

_ENCODERS: dict[EncoderKind, type[Encoder]] = {
    "lstm": LstmEncoder,
    "emformer": EmformerEncoder,
    "conformer": ConformerEncoder,
}

MAX_CONTEXT_FRAMES = 10_000
"""Longest segment or context of an encoder: 400 s at 40 ms. Masks and states grow with it."""

Context = Annotated[int, Range(minimum=0, maximum=MAX_CONTEXT_FRAMES)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TransducerConfig:
    """Shape of a transducer; the defaults have 2.4 M parameters with 240 features, 128 pieces."""

    kind: Literal["transducer"] = "transducer"
    """Selects this model in a configuration file."""

    encoder: EncoderKind = "lstm"
    """Kind of the encoder's layers. Keys that belong to other kinds must keep their defaults."""

    encoder_layers: PositiveInt = 3
    """Layers of the encoder."""

    encoder_dim: PositiveInt = 256
    """Cells of each LSTM layer, or width of an Emformer or Conformer layer."""

    encoder_projection: PositiveInt | None = None
    """LSTMP width of the encoder, below ``encoder_dim``; None for plain LSTM layers."""

    encoder_heads: PositiveInt = 4
    """Attention heads (Emformer, Conformer); a divisor of ``encoder_dim``."""

    encoder_feed_forward: PositiveInt = 1024
    """Width inside the feed-forward parts (Emformer, Conformer)."""

    encoder_kernel: PositiveInt = 15
    """Frames of the causal convolution (Conformer)."""

    segment: Annotated[int, Range(minimum=1, maximum=MAX_CONTEXT_FRAMES)] = 8
    """Encoder frames that are encoded together (Emformer, Conformer); this and ``right_context``
    are the latency."""

    left_context: Context = 32
    """Encoder frames before a segment that its attention sees (Emformer, Conformer)."""

    right_context: Context = 0
    """Encoder frames after a segment that its attention sees (Emformer)."""

    time_reduction: PositiveInt = 2
    """Feature frames per encoder frame. LSTM: a power of two, at most 2^(encoder_layers - 1), with
    family ``nemo`` any number; Emformer, Conformer: a divisor of ``encoder_dim``."""

    predictor_layers: NonNegativeInt = 1
    """LSTM layers of the predictor; 0 for the stateless one, which sees the last two tokens."""

    predictor_dim: PositiveInt = 256
    """Cells of each predictor layer, or output width of the stateless predictor."""

    predictor_projection: PositiveInt | None = None
    """LSTMP width of the predictor, below ``predictor_dim`` (family ``nemo``); None for plain LSTM
    layers."""

    embedding_dim: PositiveInt = 128
    """Width of the token embedding."""

    joiner_dim: PositiveInt = 256
    """Width in which encoder and predictor are added."""

    dropout: Probability = 0.1
    """Dropout after every LSTM layer and within Emformer and Conformer layers."""

    layer_norm: bool = True
    """Normalise the output of every LSTM layer."""

    max_symbols_per_frame: PositiveInt = 5
    """Tokens that one encoder frame may emit while decoding; sherpa-onnx emits at most 1."""

    family: Family = "omnisparse"
    """Whose layers: ours, or those of torchaudio's ``emformer_rnnt`` (Emformer): a predictor that
    normalises within its cells, normalised projections, a joiner with ReLU, whole stacks only; or
    those of ``nemo`` (LSTM with ``encoder_projection``): features stacked and projected before the
    first layer, no norms in the predictor, a joiner with ReLU."""

    predictor_warmup: NonNegativeInt = 250
    """Number of first optimizer steps that train without the predictor; see
    :class:`TransducerModel`."""

    joiner_warmup: NonNegativeInt = 0
    """Number of steps after ``predictor_warmup`` that train the joiner on the encoder alone; useful
    with ``ctc_weight``, whose first steps leave the joiner out."""

    ctc_weight: Probability = 0.0
    """Share of the label loss that is CTC on the encoder; above 0 the encoder gets an
    output layer for it, and only CTC is trained during ``predictor_warmup``."""

    ranks: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Rank of every matrix that is a product of two factors; see `omnisparse.models.factored`."""

    rank_scheme: RankScheme = "stacked"
    """``per_gate`` and ``joint`` make other products of LSTM layers."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        check_ranges(self)
        check_ranks(self.ranks, self.rank_scheme)
        check_projection(self, "encoder")
        self._check_encoder()
        self._check_family()
        if self.family == "torchaudio" and self.right_context > 1:
            # Behind an utterance, two segments would look for different frames at one place.
            raise ValueError(
                f"right_context is {self.right_context}; with family torchaudio it must be 0 or 1"
            )

    def _check_family(self) -> None:
        """Refuse what the layers of another toolkit do not have."""
        check_projection(self, "predictor")
        if self.predictor_projection is not None and self.family != "nemo":
            raise ValueError("predictor_projection belongs to family nemo; leave it out")
        wanted = {"torchaudio": "emformer", "nemo": "lstm"}.get(self.family, self.encoder)
        if self.encoder != wanted:
            raise ValueError(f"encoder is {self.encoder}; family {self.family} has {wanted}")
        if self.family != "omnisparse" and not self.predictor_layers:
            raise ValueError(
                f"predictor_layers is 0; with family {self.family} it must be at least 1"
            )
        if self.family == "nemo" and (self.encoder_projection is None or not self.layer_norm):
            raise ValueError("family nemo has an encoder_projection, and layer_norm is true")

    def _check_encoder(self) -> None:
        """Refuse keys of other encoders, and widths that cannot be divided."""
        for item in fields(self):
            owners = _ENCODER_KEYS.get(item.name, (self.encoder,))
            value = getattr(self, item.name)
            if self.encoder not in owners and value != item.default:
                raise ValueError(
                    f"{item.name} is {value}, but belongs to encoder {' or '.join(owners)}; "
                    f"with encoder {self.encoder} leave it out"
                )
        if self.encoder == "lstm" and self.family != "nemo":
            num_reductions(self.time_reduction, self.encoder_layers)
        elif self.encoder != "lstm":
            check_multiple(self, "encoder_dim", "time_reduction")
            # Rotary positions rotate pairs, so a Conformer head has an even width.
            check_multiple(
                self, "encoder_dim", "encoder_heads", factor=2 if self.encoder == "conformer" else 1
            )


class TransducerModel(SpeechModel):
    """A transducer with parameters under ``encoder``, ``predictor``, ``joiner``.

    Args:
        input_dim: Width F of the features.
        vocab_size: Tokens V, counting blank, sentence mark (unused here) and unknown.
        encoder: See :class:`TransducerConfig`, as for all that follow.
        encoder_layers: Layers of the encoder.
        encoder_dim: Cells or width of each.
        encoder_projection: LSTMP width or None.
        encoder_heads: Attention heads.
        encoder_feed_forward: Width inside the feed-forward parts.
        encoder_kernel: Frames of the convolution.
        segment: Encoder frames encoded together.
        left_context: Encoder frames before a segment.
        right_context: Encoder frames after a segment.
        time_reduction: Feature frames per encoder frame.
        predictor_layers: LSTM layers, 0 for the stateless predictor.
        predictor_dim: Cells of the predictor, or its output width.
        predictor_projection: LSTMP width or None.
        embedding_dim: Width of the embedding.
        joiner_dim: Width of the joiner.
        dropout: Probability in [0, 1).
        layer_norm: Normalise LSTM layers.
        family: See :class:`TransducerConfig`.
        max_symbols_per_frame: Tokens that one frame may emit, >= 1.
        predictor_warmup: Steps (see :meth:`set_step`) that train without the predictor.
        joiner_warmup: Steps behind those in which the joiner learns without it, too.
        ctc_weight: Share in [0, 1).

    Source: Graves 2012, arXiv:1211.3711; He et al. 2018, arXiv:1811.06621, for the streaming
    LSTM encoder with time reduction. Choice: ``predictor_warmup``. In a closed domain the predictor
    alone soon models the sentences well; then the encoder gets little gradient and stays unused
    (2 h of commands, 400 steps: 95 % WER; without the predictor for 250 of them: 51 %).
    """

    kind: ClassVar[str] = "transducer"
    streams: ClassVar[bool] = True

    def __init__(
        self,
        *,
        input_dim: int,
        vocab_size: int,
        encoder: EncoderKind = "lstm",
        encoder_layers: int = 3,
        encoder_dim: int = 256,
        encoder_projection: int | None = None,
        encoder_heads: int = 4,
        encoder_feed_forward: int = 1024,
        encoder_kernel: int = 15,
        segment: int = 8,
        left_context: int = 32,
        right_context: int = 0,
        time_reduction: int = 2,
        predictor_layers: int = 1,
        predictor_dim: int = 256,
        predictor_projection: int | None = None,
        embedding_dim: int = 128,
        joiner_dim: int = 256,
        dropout: float = 0.1,
        layer_norm: bool = True,
        family: Family = "omnisparse",
        max_symbols_per_frame: int = 5,
        predictor_warmup: int = 250,
        joiner_warmup: int = 0,
        ctc_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.vocab_size = vocab_size
        self.family = family
        self.max_symbols_per_frame = max_symbols_per_frame
        self.predictor_warmup = predictor_warmup
        self.joiner_warmup = joiner_warmup
        self._step = predictor_warmup + joiner_warmup
        shape: dict[str, Any] = {"input_dim": input_dim, "num_layers": encoder_layers}
        shape |= {"dim": encoder_dim, "time_reduction": time_reduction, "dropout": dropout}
        if encoder == "lstm":
            shape |= {"projection": encoder_projection, "layer_norm": layer_norm}
            shape |= {"stacked": family == "nemo"}
        else:
            shape |= {
                "heads": encoder_heads,
                "feed_forward_dim": encoder_feed_forward,
                "segment": segment,
                "left_context": left_context,
            }
        is_theirs = family == "torchaudio"
        if encoder == "emformer":
            shape |= {"right_context": right_context}
            shape |= {"whole_stacks": is_theirs, "input_bias": not is_theirs}
        elif encoder == "conformer":
            shape |= {"kernel": encoder_kernel}
        self.encoder = _ENCODERS[encoder](**shape)
        self.predictor: Predictor
        shape = {
            "vocab_size": vocab_size,
            "embedding_dim": embedding_dim,
            "dim": predictor_dim,
            "dropout": dropout,
        }
        if is_theirs:
            self.predictor = CellNormPredictor(num_layers=predictor_layers, **shape)
        elif predictor_layers:
            self.predictor = LstmPredictor(
                num_layers=predictor_layers,
                layer_norm=layer_norm and family != "nemo",
                projection=predictor_projection,
                **shape,
            )
        else:
            self.predictor = StatelessPredictor(**shape)
        self.joiner = Joiner(
            encoder_dim=self.encoder.output_dim,
            predictor_dim=self.predictor.output_dim,
            dim=joiner_dim,
            vocab_size=vocab_size,
            activation="tanh" if family == "omnisparse" else "relu",
            normalised=is_theirs,
        )
        self.ctc_weight = ctc_weight
        self.ctc_output = self.new_ctc_output() if ctc_weight else None

    def set_step(self, step: int) -> None:
        """Tell the model which optimizer step comes next; see :class:`SpeechModel`."""
        self._step = step

    def learns_from(self, parameter: str) -> int:
        """Steps that a part waits for: the predictor, and with CTC the joiner."""
        if parameter.startswith(("predictor.", "joiner.predictor_projection.")):
            return self.predictor_warmup + self.joiner_warmup
        return self.predictor_warmup if self.ctc_weight and parameter.startswith("joiner.") else 0

    def skip_phases(self) -> None:
        """Train with the predictor from the first step on; see :class:`SpeechModel`."""
        self.predictor_warmup = self.joiner_warmup = 0

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> ModelOutput:
        """Transducer loss and collapsed lattice; see :class:`SpeechModel`.

        With ``ctc_weight`` w the label loss is (1 - w) times that plus w times CTC on the encoder.
        ``log_posteriors`` is ``[B, T', U + 1, 3]`` (label, blank, rest), with T' and U the
        longest lengths of the batch, and ``posterior_weights`` is ``[B, T', U + 1]``. While CTC
        alone trains, both have one node and the weights are 0: there is nothing to distil yet.
        """
        # On the host: a length that is read from a GPU makes it wait.
        feature_lengths, token_lengths = feature_lengths.cpu(), token_lengths.cpu()
        encoded, _ = self.encode(features, feature_lengths.to(features.device, non_blocking=True))
        lengths = self.output_lengths(feature_lengths)
        # torchaudio's loss refuses tensors that are longer than the longest length.
        encoded = encoded[:, : max(lengths.tolist())]
        tokens = tokens[:, : max(token_lengths.tolist())]
        num_units = (token_lengths + 1).sum().float()
        warming_up = self.training and self._step < self.predictor_warmup
        ctc = None
        if self.ctc_output is not None and self.has_label_loss:
            ctc = ctc_loss(self.ctc_output(encoded), tokens, lengths, token_lengths)
            if warming_up:
                # Distributed training needs a gradient, here zero, of every parameter.
                idle = (*self.predictor.parameters(), *self.joiner.parameters())
                node = encoded.new_zeros(encoded.size(0), 1, 1, 3, dtype=torch.float32)
                alone = ctc + 0.0 * sum(weight.sum() for weight in idle)
                return ModelOutput(
                    label_loss_sum=alone,
                    ctc_loss_sum=alone,
                    num_units=num_units,
                    log_posteriors=torch.log_softmax(node, dim=-1),
                    posterior_weights=node[..., 0],
                    encoder_outputs=encoded,
                    encoder_lengths=lengths,
                )
        predicted = self.predictor(tokens)
        if self.training and self._step < self.predictor_warmup + self.joiner_warmup:
            predicted = predicted * 0.0  # not skipped, for the same reason
        lattice = self.joiner(encoded, predicted, tokens, lengths, token_lengths)
        loss, occupancy = lattice.new_tensor(float("nan")), None
        if self.has_label_loss:
            loss, occupancy = transducer_loss(lattice, lengths, token_lengths)
        weighted_ctc = None
        if ctc is not None:
            weighted_ctc = self.ctc_weight * ctc
            loss = (1 - self.ctc_weight) * loss + weighted_ctc
        return ModelOutput(
            label_loss_sum=loss,
            num_units=num_units,
            log_posteriors=lattice,
            posterior_weights=lattice_weights(lengths, token_lengths, lattice),
            encoder_outputs=encoded,
            encoder_lengths=lengths,
            ctc_loss_sum=weighted_ctc,
            occupancy=occupancy,
        )

    def search_greedily(self, encoded: Tensor, lengths: Tensor) -> list[list[int]]:
        """See :class:`SpeechModel`."""
        found, _ = transducer_greedy_search(self, encoded, lengths)
        return found

    def search_beam(self, encoded: Tensor, lengths: Tensor, *, beam: int) -> list[list[Hypothesis]]:
        """See :class:`SpeechModel`; time-synchronous."""
        return transducer_beam_search(self, encoded, lengths, beam=beam)
