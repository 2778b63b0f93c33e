"""What a model cost to make: the part of every result row that keeps comparisons honest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingAccount:
    """The bill of one trained model, and what identifies the training.

    ``teacher_*`` is what the other runs cost that this training needed (teacher, initialisation,
    and theirs), each counted once; it is not contained in the first numbers.
    """

    utterance_passes: float = 0.0
    """Utterances that went forward and backward through the net, over all processes."""

    optimizer_steps: int = 0
    """Steps of the optimizer."""

    device_seconds: float = 0.0
    """Wall time of the steps, summed over processes; a fixed teacher's forward passes included."""

    search_evaluations: int = 0
    """Models that a search evaluated to find this one."""

    teacher_utterance_passes: float = 0.0
    """Utterance passes of the runs this training needed."""

    teacher_device_seconds: float = 0.0
    """Device seconds of the runs this training needed."""

    seed: int | None = None
    """Seed of the run; None where unknown."""

    commit: str | None = None
    """Commit of the working tree that trained it; None where unknown."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TrainingAccount:
        """The account in ``document``, which may come from anyone.

        What it does not hold gets its default; what is no part of an account is left aside.

        Raises:
            ValueError: If a value is of the wrong kind.
        """
        found = {}
        for field in fields(cls):
            if field.name not in document:
                continue
            value = document[field.name]
            legal = str if field.name == "commit" else int | float
            missing = value is None and field.default is None
            if isinstance(value, bool) or not (missing or isinstance(value, legal)):
                raise ValueError(f"{field.name} is {str(value)[:40]!r}, not of its kind")
            found[field.name] = value
        return cls(**found)
