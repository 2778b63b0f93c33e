"""Training cost of a model: a part of every result row, so that comparisons are fair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingAccount:
    """The cost of one trained model, and the identity of its training.

    ``teacher_*`` is the cost of the other runs that this training needed (teacher, initialisation,
    and the runs that these needed), each counted once. It is not included in the other numbers.
    """

    utterance_passes: float = 0.0
    """Forward and backward passes of utterances through the net, over all processes; an utterance
    whose hypotheses a teacher decoded is one more."""

    optimizer_steps: int = 0
    """Steps of the optimizer."""

    device_seconds: float = 0.0
    """Wall time of the steps, summed over processes, including a teacher's forward passes and the
    decoding of hypotheses."""

    search_evaluations: int = 0
    """Models that a search evaluated to find this one."""

    teacher_utterance_passes: float = 0.0
    """Utterance passes of the runs this training needed."""

    teacher_device_seconds: float = 0.0
    """Device seconds of the runs this training needed."""

    flops: float | None = None
    """Floating-point operations of the training: matrix products and convolutions, forward and
    backward, the forward passes of a fixed teacher and its decoding included; a weight of zero
    counts. None where they were not counted."""

    teacher_flops: float | None = None
    """Floating-point operations of the runs this training needed; None where one of them did not
    count them."""

    seed: int | None = None
    """Seed of the run; None where unknown."""

    commit: str | None = None
    """Commit of the working tree that trained it; None where unknown."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TrainingAccount:
        """The account in ``document``, which may come from an untrusted source.

        Missing fields get their defaults; unknown fields are ignored.

        Raises:
            ValueError: If a value has the wrong type.
        """
        found = {}
        for field in fields(cls):
            if field.name not in document:
                continue
            value = document[field.name]
            legal = str if field.name == "commit" else int | float
            missing = value is None and field.default is None
            if isinstance(value, bool) or not (missing or isinstance(value, legal)):
                raise ValueError(f"{field.name} is {str(value)[:40]!r}, which has the wrong type")
            found[field.name] = value
        return cls(**found)


def sum_known(values: Iterable[float | None]) -> float | None:
    """The sum of numbers; None if one of them is not known."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total
