"""Alignment of reference and hypothesis word by word, and counts of confused words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

Operation = Literal["=", "S", "D", "I"]

_OPERATIONS: dict[str, Operation] = {"equal": "=", "replace": "S", "delete": "D", "insert": "I"}


class Edit(NamedTuple):
    """A word of a reference aligned with a word of a hypothesis."""

    operation: Operation
    """``=`` equal, ``S`` substituted, ``D`` deleted, ``I`` inserted."""

    reference: str | None
    """The word that was said; None for an insertion."""

    hypothesis: str | None
    """The word that was recognised; None for a deletion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """An error and how often it was made; the most frequent come first."""

    reference: str | None
    """The word that was said; None for an insertion."""

    hypothesis: str | None
    """The word that was recognised; None for a deletion."""

    count: int
    """How often."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def align(reference: str, hypothesis: str) -> list[Edit]:
    """Aligns the words of two texts with the fewest possible errors.

    The numbers of substitutions, deletions and insertions are those of
    :func:`omnisparse.evaluation.wer.word_errors`.
    """
    from rapidfuzz.distance import Levenshtein

    said, heard = reference.split(), hypothesis.split()
    edits = []
    for code in Levenshtein.opcodes(said, heard):
        operation = _OPERATIONS[code.tag]
        for step in range(max(code.src_end - code.src_start, code.dest_end - code.dest_start)):
            edits.append(
                Edit(
                    operation,
                    None if operation == "I" else said[code.src_start + step],
                    None if operation == "D" else heard[code.dest_start + step],
                )
            )
    return edits


def count_confusions(pairs: Iterable[tuple[str, str]]) -> list[Confusion]:
    """Every error of a corpus with its count, the most frequent first.

    Args:
        pairs: Reference and hypothesis of each utterance.

    Returns:
        Substitutions, deletions and insertions together; equally frequent ones in alphabetical
        order.
    """
    counter = Counter(
        (edit.reference, edit.hypothesis)
        for reference, hypothesis in pairs
        for edit in align(reference, hypothesis)
        if edit.operation != "="
    )
    ordered = sorted(
        counter.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or "")
    )
    return [
        Confusion(reference=reference, hypothesis=hypothesis, count=count)
        for (reference, hypothesis), count in ordered
    ]
