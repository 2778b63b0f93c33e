"""Word error rates by speaker, and by length of the utterance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omnisparse.evaluation.confidence import confidence_interval
from omnisparse.evaluation.result import UtteranceResult
from omnisparse.evaluation.wer import total_errors

_EDGES = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0)
"""Lengths in seconds that separate groups; a length equal to an edge is in the longer group."""

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The errors of some utterances; rates in percent."""

    name: str
    """The speaker, or the range of lengths in seconds."""
    utterances: int
    words: int
    """Reference words."""
    substitutions: int
    deletions: int
    insertions: int
    wer: float | None
    """Word error rate; None without reference words."""
    wer_low: float | None
    """Lower end of the 95 % interval; None where there is none."""
    wer_high: float | None
    cer: float | None
    """Character error rate; None without reference characters."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def by_speaker(utterances: Sequence[UtteranceResult]) -> list[Group]:
    """The errors of each speaker, the most errors first.

    Utterances without a speaker are one group, ``unknown``. If no utterance has a speaker, the list
    is empty.
    """
    if not any(utterance.speaker for utterance in utterances):
        return []
    groups = _groups(utterances, lambda utterance: utterance.speaker or UNKNOWN)
    return sorted(groups, key=lambda group: (-_errors(group), group.name))


def by_length(utterances: Sequence[UtteranceResult]) -> list[Group]:
    """The errors by length of the utterance, the shortest first; empty ranges are left out."""
    ordered = sorted(utterances, key=lambda utterance: utterance.seconds)
    return _groups(ordered, lambda utterance: _range_of(utterance.seconds))


def _range_of(seconds: float) -> str:
    below = max((edge for edge in _EDGES if edge <= seconds), default=0.0)
    above = next((edge for edge in _EDGES if edge > seconds), None)
    return f"{below:g} s and more" if above is None else f"{below:g} to {above:g} s"


def _groups(
    utterances: Iterable[UtteranceResult], name_of: Callable[[UtteranceResult], str]
) -> list[Group]:
    """Groups in the order of their first utterance."""
    members: dict[str, list[UtteranceResult]] = {}
    for utterance in utterances:
        members.setdefault(name_of(utterance), []).append(utterance)
    return [_group(name, chosen) for name, chosen in members.items()]


def _group(name: str, utterances: Sequence[UtteranceResult]) -> Group:
    counts = [utterance.counts for utterance in utterances]
    words = total_errors(counts)
    characters = total_errors([utterance.characters for utterance in utterances])
    low = high = None
    if words.words:
        speakers = [utterance.speaker for utterance in utterances]
        low, high, _ = confidence_interval(counts, speakers=speakers)
    return Group(
        name=name,
        utterances=len(utterances),
        words=words.words,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        wer=100.0 * words.errors / words.words if words.words else None,
        wer_low=low,
        wer_high=high,
        cer=100.0 * characters.errors / characters.words if characters.words else None,
    )


def _errors(group: Group) -> int:
    return group.substitutions + group.deletions + group.insertions
