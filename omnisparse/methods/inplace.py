"""In-place distillation: a subnet learns from the dense net of the same step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from torch import Tensor, nn

from omnisparse.methods.base import distillation_sum
from omnisparse.models.base import ModelOutput
from omnisparse.models.divergence import encoder_distance

Distill = Literal["posteriors", "encoder", "both"]
Nodes = Literal["all", "occupied"]


def taught(distill: Distill, posterior_weight: float, encoder_weight: float) -> Distill | None:
    """What of ``distill`` has a weight above 0; None if nothing has."""
    posteriors = distill != "encoder" and posterior_weight > 0
    encoder = distill != "posteriors" and encoder_weight > 0
    if posteriors and encoder:
        return "both"
    return "posteriors" if posteriors else "encoder" if encoder else None


class Teacher(NamedTuple):
    """Outputs kept from the dense pass: a few values per node, and the encoder's if needed."""

    log_posteriors: Tensor | None
    """``[B, ..., K]``, detached."""
    encoder_outputs: Tensor | None
    """``[B, T', D]``, detached."""
    weights: Tensor | None = None
    """``[B, T', U + 1]`` weights of lattice nodes; None for those of the student's output."""

    @classmethod
    def of(cls, output: ModelOutput, distill: Distill | None, nodes: Nodes = "all") -> Teacher:
        """Keep the parts of the dense net's output that are needed.

        Args:
            output: Output of the dense net.
            distill: What the student learns from it; None for nothing.
            nodes: Weights of the nodes of a transducer's lattice: all equal, or each by the
                expected number of label alignments through it. An attention decoder has no lattice.

        Raises:
            ValueError: If the encoder is to be distilled and the model gives no encoder outputs.
        """
        encoded = None
        if distill is None:
            return cls(None, None)
        if distill != "posteriors":
            if output.encoder_outputs is None:
                raise ValueError(f"distill is {distill!r}; this model gives no encoder outputs")
            encoded = output.encoder_outputs.detach()
        if distill == "encoder":
            return cls(None, encoded)
        posteriors, weights = output.log_posteriors.detach(), None
        if nodes == "occupied":
            weights = output.occupancy
        return cls(posteriors, encoded, weights)

    def select(self, rows: Tensor) -> Teacher:
        """The teacher of some utterances, given by their ``[N]`` int64 rows."""
        return Teacher(
            *(
                None if tensor is None else tensor[rows.to(tensor.device, non_blocking=True)]
                for tensor in self
            )
        )

    def distance(
        self,
        student: ModelOutput,
        *,
        posterior_weight: float,
        encoder_weight: float,
        alphas: tuple[float, float] | None = None,
        clip: float = 5.0,
    ) -> Tensor:
        """The distillation loss of the student, summed over its positions.

        Args:
            student: Output of the same utterances.
            posterior_weight: Weight of the divergence between posteriors.
            encoder_weight: Weight of the distance between encoders, per frame.
            alphas: Alphas of two alpha-divergences, of which the larger is used; None for KL.
            clip: Largest importance weight of the alpha-divergences.

        Returns:
            Scalar float32.
        """
        total = student.label_loss_sum.new_zeros(())
        if self.log_posteriors is not None:
            divergence = distillation_sum(
                self.log_posteriors, student, weights=self.weights, alphas=alphas, clip=clip
            )
            total = total + posterior_weight * divergence
        if self.encoder_outputs is not None:
            assert student.encoder_outputs is not None
            assert student.encoder_lengths is not None
            distance = encoder_distance(
                self.encoder_outputs, student.encoder_outputs, student.encoder_lengths
            )
            total = total + encoder_weight * distance
        return total


@contextmanager
def scaled_dropout(model: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the dropout of a net for the forward passes in a block of code.

    A net with less capacity needs less dropout: AlphaNet's subnets train without dropout, TODM's
    with an "adaptive" amount whose rule is not published in readable form.

    Args:
        model: Its ``nn.Dropout`` modules change, and the numbers named ``dropout`` of other modules
            (``nn.MultiheadAttention``, torchaudio's Emformer attention).
        factor: In [0, 1]; 1 changes nothing.
    """
    before: list[tuple[nn.Module, str, float]] = []
    if factor != 1.0:
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                before.append((module, "p", module.p))
            elif isinstance(module.__dict__.get("dropout"), float):
                before.append((module, "dropout", module.__dict__["dropout"]))
    try:
        for module, name, probability in before:
            setattr(module, name, probability * factor)
        yield
    finally:
        for module, name, probability in before:
            setattr(module, name, probability)
