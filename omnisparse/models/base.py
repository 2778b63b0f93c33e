"""The interface of every speech model of this package, for training, search and deployment.

Legend: B batch, T feature frames, T' encoder frames, U tokens, F features, D model, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from omnisparse.models.encoder import Encoder, EncoderState
from omnisparse.models.products_bf16 import Linear

BLANK = 0
"""Token id of the transducer's blank; padding of token tensors."""

SOS_EOS = 1
"""Token id that starts and ends a sentence in the LAS decoder."""

NO_FINITE_SCORE = (
    "the model's scores are NaN (do its weights overflow?), so no hypothesis was found"
)
"""Error message for scores that are NaN. Greedy search would otherwise return an empty result."""


class ModelOutput(NamedTuple):
    """Everything a training method needs from one forward pass."""

    label_loss_sum: Tensor
    """Scalar float32: the training loss on the labels, summed over the batch."""

    num_units: Tensor
    """Scalar float32: number of label units in the sum, ``sum(U_b + 1)`` for both model kinds."""

    log_posteriors: Tensor
    """``[B, ..., K]`` float32 log-probabilities to distil; probabilities over K sum to one."""

    posterior_weights: Tensor
    """``[B, ...]`` float32: ``sum(weights * divergence) / num_units`` is a distillation loss."""

    encoder_outputs: Tensor | None = None
    """``[B, T', D]``: outputs of the encoder, for distillation; undefined beyond each length."""

    encoder_lengths: Tensor | None = None
    """``[B]`` int64 lengths of ``encoder_outputs``."""

    ctc_loss_sum: Tensor | None = None
    """Scalar float32: the part of ``label_loss_sum`` that is CTC on the encoder, weighted as in it;
    None without a CTC layer."""

    occupancy: Tensor | None = None
    """``[B, T', U + 1]`` float32, detached: how often the alignments of the labels pass each node
    of a transducer's lattice, in expectation; None where there is no lattice."""


class Hypothesis(NamedTuple):
    """One decoded sentence."""

    tokens: list[int]
    """Token ids without blank and sentence marks."""

    log_probability: float
    """Natural log of the model's probability of the sentence, without length normalisation."""


class SpeechModel(nn.Module, ABC):
    """A recogniser: label loss and posteriors in one forward, and batched decoding.

    A subclass defines ``encoder``, its loss (:meth:`forward`) and its two searches.
    """

    kind: ClassVar[str]
    streams: ClassVar[bool] = False
    """Whether it recognises audio while it arrives, so that audio may be of any length."""
    ships_heads: bool = False
    """Whether heads that only training uses count as parts of the net, as in files of earlier
    versions."""
    encoder: Encoder
    ctc_output: nn.Linear | None
    vocab_size: int
    input_dim: int
    has_label_loss: bool = True
    """Whether :meth:`forward` computes the loss on the labels; a fixed teacher needs none."""

    @abstractmethod
    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> ModelOutput:
        """Label loss and posteriors of a batch.

        Args:
            features: ``[B, T, F]`` float32, padded at the end.
            feature_lengths: ``[B]`` int64, in 1..T.
            tokens: ``[B, U]`` int64 token ids >= 2, padded with 0.
            token_lengths: ``[B]`` int64, in 0..U.

        Returns:
            The loss, its unit count, and the posteriors with their weights. Without
            ``has_label_loss`` the loss is NaN, and a lattice has no ``occupancy``.
        """

    def set_step(self, step: int) -> None:
        """Tell the model which optimizer step comes next, counted from 0.

        The training loop calls this before every step. A model whose training has phases overrides
        it. Without any call, a model trains as in its last phase.
        """

    def training_only(self) -> tuple[str, ...]:
        """Names of the parameters that no recogniser needs: the CTC layer. No budget counts them.

        Artifacts leave them out.
        """
        if self.ctc_output is None or self.ships_heads:
            return ()
        return tuple(f"ctc_output.{name}" for name, _ in self.ctc_output.named_parameters())

    def new_ctc_output(self) -> nn.Linear:
        """A new CTC layer for this net's encoder."""
        return Linear(self.encoder.output_dim, self.vocab_size)

    def shipped_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the net as it is shipped, by name, in model order."""
        left_out = set(self.training_only())
        return {name: p for name, p in self.named_parameters() if name not in left_out}

    def learns_from(self, parameter: str) -> int:
        """The optimizer step, counted from 0, that gives a parameter its first gradient.

        Above 0 only where training has phases that leave out a part of the net. Nothing may judge
        a weight by its magnitude before.

        Args:
            parameter: Its name.
        """
        return 0

    def skip_phases(self) -> None:
        """Train as in the last phase from the first step on: the weights are trained already."""

    @abstractmethod
    def search_greedily(self, encoded: Tensor, lengths: Tensor) -> list[list[int]]:
        """Greedy search of ``[B, T', D]`` encodings with ``[B]`` int64 lengths."""

    @abstractmethod
    def search_beam(self, encoded: Tensor, lengths: Tensor, *, beam: int) -> list[list[Hypothesis]]:
        """Beam search of ``[B, T', D]`` encodings with ``[B]`` int64 lengths, best first."""

    def encode(self, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
            features: ``[B, T, F]`` float32.
            feature_lengths: ``[B]`` int64.

        Returns:
            ``[B, T', D]`` encodings (undefined beyond each length) and ``[B]`` int64 lengths.
        """
        encoded, lengths = self.encoder(features, feature_lengths)
        return encoded, lengths

    def output_lengths(self, feature_lengths: Tensor) -> Tensor:
        """Encoder frames for ``[B]`` feature lengths: time reduction rounded up, at least 1."""
        return self.encoder.output_lengths(feature_lengths)

    def initial_state(self, batch: int) -> EncoderState:
        """The encoder's state before the first chunk of ``batch`` streams."""
        return self.encoder.initial_state(batch)

    def encode_chunk(
        self, features: Tensor, state: EncoderState, *, final: bool = False
    ) -> tuple[Tensor, EncoderState]:
        """Encode the next chunk of a stream; see :meth:`Encoder.forward_chunk`."""
        return self.encoder.forward_chunk(features, state, final=final)

    @torch.inference_mode()
    def greedy(self, features: Tensor, feature_lengths: Tensor) -> list[list[int]]:
        """Batched greedy decoding: token ids without blank and sentence marks."""
        lengths = feature_lengths.to(features.device)
        return self.search_greedily(*self.encode(features, lengths))

    @torch.inference_mode()
    def nbest(
        self, features: Tensor, feature_lengths: Tensor, *, beam: int
    ) -> list[list[Hypothesis]]:
        """The hypotheses of a batched beam search, best first.

        Args:
            features: ``[B, T, F]`` float32.
            feature_lengths: ``[B]`` int64.
            beam: Hypotheses kept per utterance, >= 1.

        Returns:
            Per utterance 1..beam different hypotheses.
        """
        lengths = feature_lengths.to(features.device)
        return self.search_beam(*self.encode(features, lengths), beam=beam)

    def decode(
        self, features: Tensor, feature_lengths: Tensor, *, beam: int = 1
    ) -> list[list[int]]:
        """Recognise a batch, greedily (``beam=1``) or with a beam search.

        Args:
            features: ``[B, T, F]`` float32.
            feature_lengths: ``[B]`` int64.
            beam: Width of the search, >= 1.

        Returns:
            Token ids per utterance, without blank and sentence marks.

        Raises:
            ValueError: If ``beam`` is below 1.
        """
        if beam < 1:
            raise ValueError(f"beam is {beam}; it must be at least 1")
        if beam == 1:
            return self.greedy(features, feature_lengths)
        return [found[0].tokens for found in self.nbest(features, feature_lengths, beam=beam)]
