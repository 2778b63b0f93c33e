"""Distillation of a fixed, trained teacher into a student of any size and factorization.

Three objectives differ in the tokens used for teacher forcing: the transcript (TRUTH), the
teacher's best hypothesis (TOP), or all hypotheses of its beam, weighted by probability (BEAM). At
every token the student learns the teacher's posteriors. For a transducer these are the posteriors
of every node of the lattice, collapsed to label, blank and the rest.

For a first share of the run (``label_fraction``) the student learns from labels alone: the paper
starts every distillation from a net trained on labels. It is one training, so that epochs,
optimizer and schedule go on. A CTC layer of the student learns from the labels throughout, with the
weight that it has in any other training.

Source: Pang et al. 2018, eqs. 2-5; for the lattice Panchapagesan et al. 2020, arXiv:2011.06110.
Deviation: as printed, eq. 5 has a second minus sign and so maximises the cross-entropy; here it is
minimised. The value is the divergence: the cross-entropy of eqs. 2 and 3 minus the teacher's
entropy. The entropy does not depend on the student, and the divergence is 0 if the two agree. TOP
takes the most probable hypothesis of the beam, as the paper does; the search itself ranks by
length-normalised score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from omnisparse.data.batching import Batch
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import (
    NonNegativeFloat,
    OmnisparseError,
    PositiveInt,
    Share,
    check_ranges,
)
from omnisparse.methods.base import Forward, Loss, distillation_sum, forward_batch, label_units
from omnisparse.models import Hypothesis, SpeechModel
from omnisparse.models.base import ModelOutput

Hypotheses = Mapping[str, Sequence[Hypothesis]]
"""The teacher's hypotheses by utterance id, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """How a student learns from a teacher."""

    kind: Literal["distillation"] = "distillation"
    """Selects this method."""
    teacher: str
    """Run or artifact directory of the trained teacher."""
    objective: Literal["truth", "top", "beam"] = "truth"
    """Tokens for teacher forcing of both nets: the transcript, the teacher's best hypothesis, or
    its whole beam. Pang et al. report their combined results with ``truth``, which needs no
    decoding."""
    beam: PositiveInt = 4
    """Hypotheses that the teacher's search keeps, for ``top`` and ``beam``."""
    distillation_weight: NonNegativeFloat = 1.0
    """Weight of the divergence from the teacher."""
    label_weight: NonNegativeFloat | None = None
    """Weight of the loss on the transcript. null takes the published choice: 0 for LAS (a student
    that starts from trained weights needs no such loss), 1 for the transducer's lattice. CTC on the
    transcript keeps its own weight (``model.ctc_weight``) in any case."""
    label_fraction: Share = 0.0
    """Share of the run's steps, at its start, that train on the transcript alone."""

    def __post_init__(self) -> None:
        """Check ranges; the teacher is checked when it is loaded."""
        if not self.teacher:
            raise ValueError("teacher is empty; it must be the run or artifact directory to distil")
        check_ranges(self)
        if not (self.distillation_weight or self.label_weight):
            raise ValueError(
                "distillation_weight is 0 and no label_weight is given; one must be above 0"
            )

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses per utterance used in training; 0 if the transcript is used."""
        return {"truth": 0, "top": 1, "beam": self.beam}[self.objective]


class Teacher:
    """A fixed net and its outputs for the student's batches. It is not trained.

    Args:
        model: The net; put into evaluation mode, its parameters frozen, without a label loss.
        scale: ``[F]`` factor from the student's normalised features to the teacher's; None if
            both are normalised alike.
        shift: ``[F]`` offset added after the factor.
        hypotheses: The teacher's hypotheses of the training utterances.
    """

    def __init__(
        self,
        model: SpeechModel,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        hypotheses: Hypotheses | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.model.has_label_loss = False
        self.digest = digest_of(model)
        self.hypotheses: Hypotheses = hypotheses or {}
        self._scale, self._shift = scale, shift

    @torch.no_grad()
    def log_posteriors(self, batch: Batch) -> Tensor:
        """Log-posteriors ``[B, ..., K]`` of the batch's tokens, on the batch's device."""
        device = batch.features.device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        if self._scale is not None and self._shift is not None:
            features = batch.features * self._scale.to(device) + self._shift.to(device)
            batch = replace(batch, features=features)
        return forward_batch(self.model, batch).log_posteriors


class Distillation:
    """One pass of the teacher and one of the student per hypothesis (see the module's docstring).

    Args:
        config: Its configuration.
        teacher: The teacher, with hypotheses if the objective needs them.
    """

    def __init__(self, config: DistillationConfig, teacher: Teacher) -> None:
        self.config = config
        self.teacher = teacher
        self.label_weight = 0.0
        self.label_steps = 0
        self._has_ctc = False

    def prepare(self, model: nn.Module, *, max_steps: int) -> nn.Module:
        """Return ``model`` unchanged."""
        published = 1.0 if getattr(model, "kind", "") == "transducer" else 0.0
        given = self.config.label_weight
        self.label_weight = published if given is None else given
        self.label_steps = round(self.config.label_fraction * max_steps)
        self._has_ctc = getattr(model, "ctc_output", None) is not None
        return model

    @property
    def _forces_labels(self) -> bool:
        """Whether hypotheses need a further pass on the transcript."""
        return self.label_weight > 0 or self._has_ctc

    def num_losses(self, step: int) -> int:
        """One for the transcript; else one per hypothesis, plus one if labels have a weight."""
        hypotheses = 0 if step < self.label_steps else self.config.num_hypotheses
        return hypotheses + self._forces_labels if hypotheses else 1

    def units(self, batch: Batch, step: int) -> Sequence[float]:
        """Label units on the transcript; on hypotheses their expected tokens, for each rank."""
        labels = label_units(batch)
        if step < self.label_steps or not self.config.num_hypotheses:
            return (labels,)
        _, _, total = self._ranked(batch)
        ranks = (total,) * self.config.num_hypotheses
        return (*ranks, labels) if self._forces_labels else ranks

    def losses(self, forward: Forward, batch: Batch, step: int) -> Iterator[Loss]:
        """Yield the divergence from the teacher on the transcript or on each hypothesis."""
        if step < self.label_steps:
            output = forward_batch(forward, batch)
            yield Loss("dense", output.label_loss_sum, output.num_units, 1.0, len(batch))
            return
        if not self.config.num_hypotheses:
            yield self._truth(forward, batch)
            return
        yield from self._hypotheses(forward, batch)
        if self._forces_labels:
            output = forward_batch(forward, batch)
            yield Loss("labels", self._label_sum(output), output.num_units, 1.0, len(batch))

    def _truth(self, forward: Forward, batch: Batch) -> Loss:
        """Eq. 2, and the labels' loss from the same pass."""
        teacher = self.teacher.log_posteriors(batch)
        output = forward_batch(forward, batch)
        value = self.config.distillation_weight * distillation_sum(teacher, output)
        value = value + self._label_sum(output)
        return Loss("truth", value, output.num_units, 1.0, len(batch))

    def _label_sum(self, output: ModelOutput) -> Tensor:
        """The labels' loss with its weight, but CTC with at least its own."""
        value = self.label_weight * output.label_loss_sum
        if output.ctc_loss_sum is not None and self.label_weight < 1:
            value = value + (1 - self.label_weight) * output.ctc_loss_sum
        return value

    def _hypotheses(self, forward: Forward, batch: Batch) -> Iterator[Loss]:
        """Eq. 4 or 5: one pass per rank in the beam, all divided by the same number of tokens."""
        count = self.config.num_hypotheses
        beams, weights, total = self._ranked(batch)
        device = batch.features.device
        num_units = torch.tensor(float(total))
        for rank in range(count):
            # A beam may have fewer hypotheses: its best fills the empty place with weight 0.
            tokens = [(beam[rank] if rank < len(beam) else beam[0]).tokens for beam in beams]
            shares = torch.tensor(
                [row[rank] if rank < len(row) else 0.0 for row in weights], device=device
            )
            forced = with_tokens(batch, tokens)
            teacher = self.teacher.log_posteriors(forced)
            output = forward_batch(forward, forced)
            shape = (-1, *[1] * (output.posterior_weights.ndim - 1))
            weighted = output._replace(
                posterior_weights=output.posterior_weights * shares.view(shape)
            )
            value = distillation_sum(teacher, weighted)
            name = self.config.objective if count == 1 else f"beam_{rank}"
            yield Loss(name, value, num_units, self.config.distillation_weight, len(batch))

    def _ranked(self, batch: Batch) -> tuple[list[Sequence[Hypothesis]], list[list[float]], float]:
        """Hypotheses of each utterance, their weights, and the tokens expected of all."""
        count = self.config.num_hypotheses
        beams: list[Sequence[Hypothesis]] = [
            sorted(self._beam(utterance), key=lambda found: -found.log_probability)[:count]
            for utterance in batch.ids
        ]
        weights = [beam_weights(beam) for beam in beams]
        total = sum(
            weight * (len(hypothesis.tokens) + 1)
            for beam, shares in zip(beams, weights, strict=True)
            for hypothesis, weight in zip(beam, shares, strict=True)
        )
        return beams, weights, total

    def _beam(self, utterance: str) -> Sequence[Hypothesis]:
        found = self.teacher.hypotheses.get(utterance)
        if not found:
            raise OmnisparseError(f"the teacher's hypotheses lack utterance {utterance}")
        return found

    def on_step_end(self, step: int) -> None:
        """Nothing to do."""

    def metrics(self) -> Mapping[str, float]:
        """No values beside the losses."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the teacher's digest: a resumed run must have the same teacher."""
        return {"teacher": torch.tensor(list(bytes.fromhex(self.teacher.digest)))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Check that the teacher is the one with which the run began.

        Raises:
            OmnisparseError: If its weights have changed.
        """
        if bytes(state["teacher"].tolist()).hex() != self.teacher.digest:
            raise OmnisparseError(
                f"teacher {self.config.teacher} has other weights than when this run began; "
                "a run keeps its teacher: start a new run for another"
            )


def beam_weights(beam: Sequence[Hypothesis]) -> list[float]:
    """Probabilities of the hypotheses, renormalised over the beam: Q' of eq. 5."""
    scores = torch.tensor([found.log_probability for found in beam], dtype=torch.float64)
    return torch.softmax(scores, dim=0).tolist()


def with_tokens(batch: Batch, tokens: Sequence[Sequence[int]]) -> Batch:
    """The batch with other tokens of each utterance, ``[U_b]`` each."""
    longest = max(1, *(len(one) for one in tokens))
    padded = [list(one) + [0] * (longest - len(one)) for one in tokens]
    device = batch.tokens.device
    return replace(
        batch,
        tokens=torch.tensor(padded, dtype=torch.int64, device=device),
        token_lengths=torch.tensor([len(one) for one in tokens]),
    )


def digest_of(model: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and values of a model's state, as hexadecimal text."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def feature_map(
    teacher: FeatureExtractor, student: FeatureExtractor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The map from stacked features normalised for the student to those for the teacher.

    Returns:
        Factor and offset, ``[F]`` each; (None, None) if the statistics are equal.
    """
    own, other = _statistics(student), _statistics(teacher)
    if all(torch.equal(a, b) for a, b in zip(own, other, strict=True)):
        return None, None
    (own_mean, own_std), (mean, std) = own, other
    scale, shift = own_std / std, (own_mean - mean) / std
    return scale.repeat(student.stack), shift.repeat(student.stack)


def _statistics(extractor: FeatureExtractor) -> tuple[Tensor, Tensor]:
    mean, std = extractor.mean, extractor.std
    if mean is None or std is None:
        return torch.zeros(extractor.num_bins), torch.ones(extractor.num_bins)
    return torch.from_numpy(mean), torch.from_numpy(std)


class Relative(Protocol):
    """What is asked of a trained net."""

    @property
    def kind(self) -> str:
        """Kind of the net."""

    @property
    def vocab_size(self) -> int:
        """Tokens with blank."""


def check_relatives(
    name: str,
    other: tuple[Relative, FeatureExtractor, Tokenizer],
    own: tuple[SpeechModel, FeatureExtractor, Tokenizer],
) -> None:
    """Refuse a trained net whose tokens or features differ from those of the net in training.

    Args:
        name: Name of the trained net in the message, e.g. ``teacher runs/large``.
        other: The trained net with its features and tokens.
        own: The net in training with its features and tokens.

    Raises:
        OmnisparseError: Naming the first thing that differs and both values.
    """
    (model, extractor, tokenizer), (student, features, tokens) = other, own
    if model.kind != student.kind:
        raise OmnisparseError(f"{name} is a {model.kind}; a {student.kind} is needed")
    for what in ("kind", "num_bins", "stack", "sampling_rate", "per_utterance"):
        theirs, ours = getattr(extractor, what), getattr(features, what)
        if theirs != ours:
            key = "normalize" if what == "per_utterance" else what
            raise OmnisparseError(
                f"{name} reads features with {what} {theirs}; this run's have {ours} "
                f"(data.features.{key})"
            )
    if model.vocab_size != student.vocab_size:
        raise OmnisparseError(
            f"{name} has a vocabulary of {model.vocab_size} pieces; this run's has "
            f"{student.vocab_size} (data.vocab_size; data.tokenizer=RUN takes the pieces of a run)"
        )
    if tokenizer.to_bytes() != tokens.to_bytes():
        raise OmnisparseError(
            f"{name} has other word pieces than this run, learned from other transcripts; "
            "data.tokenizer=RUN takes the pieces of a run"
        )


def check_teacher_lattice(name: str, teacher: SpeechModel, student: SpeechModel) -> None:
    """Refuse a transducer teacher whose frame rate differs from the student's.

    Raises:
        OmnisparseError: Naming both frame rates.
    """
    if student.kind != "transducer":
        return
    frames = torch.tensor([1 << 10])
    theirs, ours = (int(frames // net.output_lengths(frames)) for net in (teacher, student))
    if theirs != ours:
        raise OmnisparseError(
            f"{name} has a time reduction of {theirs}, the student of {ours}; a lattice is "
            "distilled node by node, so both need the same (model.time_reduction)"
        )
