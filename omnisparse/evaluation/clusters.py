"""What an interval leaves out in turn: the speakers of a test set, or its utterances.

Errors of one speaker depend on each other: a voice that a model understands badly is badly
understood in all of its utterances. So a speaker, not an utterance, is the unit of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

SPEAKERS_FOR_A_STAR = 10
"""With fewer speakers, no difference is called significant."""

FEWEST_SPEAKERS = 5
"""With fewer speakers, their spread tells nothing of other voices, and utterances are the units."""

Unit = Literal["speakers", "utterances"]


@dataclass(frozen=True, slots=True)
class Clusters:
    """The units of chance of a test set."""

    index: IntArray
    """[N] int, the unit of each utterance, from 0."""
    unit: Unit
    """What a unit is."""

    @property
    def number(self) -> int:
        """Number of units."""
        return int(self.index.max(initial=-1)) + 1

    def sums(self, values: IntArray) -> IntArray:
        """``values`` [..., N] added up within each unit: [..., G]."""
        if self.unit == "utterances":
            return values
        rows = values.reshape(-1, len(self.index))
        sums = [np.bincount(self.index, weights=row, minlength=self.number) for row in rows]
        return np.array(sums).astype(np.int64).reshape(*values.shape[:-1], self.number)


def clusters_of(speakers: Sequence[str | None] | None, number: int) -> Clusters:
    """The units of chance of a test set.

    Args:
        speakers: Speaker of each utterance; those without a name count as one speaker together.
            None if the test set names none.
        number: Number of utterances.

    Raises:
        ValueError: If there is not one speaker per utterance.
    """
    if speakers is not None and len(speakers) != number:
        raise ValueError(f"speakers: expected one per utterance ({number}), got {len(speakers)}")
    if num_speakers(speakers) < FEWEST_SPEAKERS:
        return Clusters(np.arange(number), "utterances")
    assert speakers is not None
    place: dict[str | None, int] = {}
    return Clusters(np.array([place.setdefault(s, len(place)) for s in speakers]), "speakers")


def num_speakers(speakers: Sequence[str | None] | None) -> int:
    """Number of named speakers."""
    return len({speaker for speaker in speakers or () if speaker})


def speakers_note(speakers: Sequence[str | None] | None) -> str | None:
    """A remark for the user where the voices of a test set limit what its intervals say.

    Args:
        speakers: Speaker of each utterance; None if the test set names none.
    """
    number = num_speakers(speakers)
    if speakers is not None and len(speakers) < 2:
        return None  # another remark says that there is no interval at all
    if number == 0:
        return (
            "the manifest names no speaker: intervals are over utterances, too narrow where a "
            "model understands some voices better than others, and no difference gets a star"
        )
    nameless = sum(not speaker for speaker in speakers or ())
    parts = []
    if number < FEWEST_SPEAKERS:
        who = "one speaker: intervals are" if number == 1 else f"{number} speakers: intervals are"
        parts.append(
            f"{who} over utterances and hold for no other voice; no difference gets a star "
            f"(below {SPEAKERS_FOR_A_STAR} speakers)"
        )
    elif number < SPEAKERS_FOR_A_STAR:
        parts.append(
            f"{number} speakers are few (below {SPEAKERS_FOR_A_STAR}): intervals are wide, and no "
            "difference gets a star"
        )
    if nameless and number >= FEWEST_SPEAKERS:
        parts.append(f"{nameless:,} utterances name no speaker and count as one together")
    return "; ".join(parts) or None
