"""A training method is a source of losses. The trainer does everything else.

Every method is one file in this room. :meth:`Method.num_losses` tells the trainer how many pairs of
forward and backward passes the step has. The trainer then takes that many :class:`Loss` objects
lazily from :meth:`Method.losses` (one backward each, so that only one graph exists at a time),
normalises them over all processes, clips and steps once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from omnisparse.data.batching import Batch
from omnisparse.models.base import ModelOutput, SpeechModel
from omnisparse.models.divergence import adaptive_alpha_divergence, kl_divergence

Forward = Callable[[Tensor, Tensor, Tensor, Tensor], ModelOutput]
"""The (possibly wrapped) network: features, feature lengths, tokens, token lengths."""


class Loss(NamedTuple):
    """The loss of one backward pass, not yet normalised.

    Attributes:
        name: What is trained, e.g. ``dense``; also the key in the log.
        value_sum: Scalar, summed over this process's units, with graph.
        num_units: Scalar, the number of units in the sum (label tokens); the trainer divides by
            the total of all processes.
        weight: Factor of the normalised loss in the step's objective.
        utterances: Utterances of this process in this pass, for the cost record.
    """

    name: str
    value_sum: Tensor
    num_units: Tensor
    weight: float
    utterances: int


class Method(Protocol):
    """A way of training; ``CONTRIBUTING.md`` describes this protocol.

    A method may have more, each optional: ``notes()``, lines for the user after ``prepare``;
    ``described()``, what the run's record says of it; ``model_to_keep(done)``, the name under which
    the run keeps the net as it is after ``done`` steps (None mostly).
    """

    def prepare(self, model: nn.Module, *, max_steps: int) -> nn.Module:
        """Return the module to train (the model itself, or a wrapper of it)."""
        ...

    def num_losses(self, step: int) -> int:
        """Number of losses that :meth:`losses` yields at ``step`` (counted from 0)."""
        ...

    def units(self, batch: Batch, step: int) -> Sequence[float]:
        """``num_units`` of each loss of a whole batch, before any forward pass.

        Asked for only where a batch is computed in parts, which have one divisor.
        """
        ...

    def losses(self, forward: Forward, batch: Batch, step: int) -> Iterator[Loss]:
        """Yield the losses of a batch, or of a part of it, each after its own forward pass."""
        ...

    def on_step_end(self, step: int) -> None:
        """Called after the optimizer has stepped; mask schedules belong here."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Present values to log beside the losses."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs beyond weights and step number."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of :meth:`state_dict`."""
        ...


def first_step(model: nn.Module, names: Sequence[str]) -> int:
    """The first optimizer step, from 0, at which all parameters of ``names`` learn."""
    if not isinstance(model, SpeechModel):
        return 0
    return max(model.learns_from(name) for name in names)


def notes_of(method: Method) -> Sequence[str]:
    """What the user should know of a method that is prepared."""
    return tuple(method.notes()) if hasattr(method, "notes") else ()


def described_by(method: Method) -> Mapping[str, Any]:
    """What the run's record says of a method that is prepared."""
    return dict(method.described()) if hasattr(method, "described") else {}


def model_to_keep(method: Method, done: int) -> str | None:
    """Name of the model that the run keeps after ``done`` steps; None for none."""
    return method.model_to_keep(done) if hasattr(method, "model_to_keep") else None


def forward_batch(forward: Forward, batch: Batch) -> ModelOutput:
    """Run ``forward`` on the four tensors of ``batch``."""
    return forward(batch.features, batch.feature_lengths, batch.tokens, batch.token_lengths)


def label_units(batch: Batch) -> float:
    """What the label loss of a batch is summed over: its tokens, and an end for each utterance."""
    return float(sum(batch.token_lengths.tolist()) + len(batch))


def distillation_sum(
    teacher_log_posteriors: Tensor,
    student: ModelOutput,
    *,
    weights: Tensor | None = None,
    alphas: tuple[float, float] | None = None,
    clip: float = 5.0,
) -> Tensor:
    """Weighted sum of the divergence from the teacher over all positions of the student's output.

    Args:
        teacher_log_posteriors: [B, ..., K] float, detached; may be padded further than the
            student's.
        student: Output of the same utterances.
        weights: [B, ...] float weights of the positions, possibly padded like the teacher's
            posteriors; None for the student's ``posterior_weights``.
        alphas: Alphas of two alpha-divergences, of which the larger is used; None for
            KL(teacher || student).
        clip: Largest importance weight of the alpha-divergences.

    Returns:
        Scalar: the sum of weights times divergence (for KL in nats).

    Source: Hinton et al. 2015 (temperature 1); over a collapsed lattice this is Panchapagesan et
    al. 2020 (arXiv 2011.06110).
    """
    student_log = student.log_posteriors
    teacher_log = teacher_log_posteriors[tuple(slice(size) for size in student_log.shape)]
    if weights is None:
        weights = student.posterior_weights
    else:
        weights = weights[tuple(slice(size) for size in student_log.shape[:-1])]
    if alphas is None:
        divergence = kl_divergence(teacher_log, student_log)
    else:
        divergence = adaptive_alpha_divergence(teacher_log, student_log, alphas=alphas, clip=clip)
    return (divergence * weights).sum()


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig:
    """Plain training of the dense net: the baseline that is later pruned by magnitude."""

    kind: Literal["dense"] = "dense"
    """Selects this method."""


class Dense:
    """Label loss of the dense net, nothing else."""

    def prepare(self, model: nn.Module, *, max_steps: int) -> nn.Module:
        """Return ``model`` unchanged."""
        return model

    def num_losses(self, step: int) -> int:
        """Return 1: one forward and one backward."""
        return 1

    def units(self, batch: Batch, step: int) -> Sequence[float]:
        """Label tokens and ends of sentences."""
        return (label_units(batch),)

    def losses(self, forward: Forward, batch: Batch, step: int) -> Iterator[Loss]:
        """Yield the label loss of the whole batch."""
        output = forward_batch(forward, batch)
        yield Loss("dense", output.label_loss_sum, output.num_units, 1.0, len(batch.ids))

    def on_step_end(self, step: int) -> None:
        """Nothing to do."""

    def metrics(self) -> Mapping[str, float]:
        """No values beside the loss."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Accept no state."""
