"""Word and character errors: counts per utterance, and the corpus rate in percent.

Words are separated by whitespace. Texts are not normalised, so case and punctuation of reference
and hypothesis must already agree. Every rate in omnisparse is in percent: a ``wer`` of 5.7 means
5.7 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCounts:
    """Word errors of one utterance, or of a corpus when summed; or character errors.

    An utterance with an empty reference has ``words == 0``: every word of its hypothesis is an
    insertion and counts in the corpus rate, but the utterance has no rate of its own.
    """

    substitutions: int = 0
    """Reference words recognised as another word."""

    deletions: int = 0
    """Reference words without a counterpart."""

    insertions: int = 0
    """Hypothesis words without a counterpart."""

    words: int = 0
    """Reference words; for character errors, reference characters."""

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Counts the word errors of each utterance by minimum edit distance.

    Args:
        references: What was said, one string per utterance. May be empty strings.
        hypotheses: What was recognised, in the order of ``references``.

    Returns:
        One count per utterance, in order.

    Raises:
        ValueError: If the two sequences differ in length.
    """
    _check_pairs(references, hypotheses)
    if not references:
        return []
    import jiwer  # slow to import, and `omnisparse --help` does not need it

    spaced = [[" ".join(text.split()) for text in texts] for texts in (references, hypotheses)]
    output = jiwer.process_words(*spaced)  # it splits only at the plain space
    return [
        _count(chunks, words=len(reference))
        for chunks, reference in zip(output.alignments, output.references, strict=True)
    ]


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Counts the character errors of each utterance by minimum edit distance.

    A character is a Unicode code point; one space between two words is also a character.

    Args:
        references: What was said, one string per utterance. May be empty strings.
        hypotheses: What was recognised, in the order of ``references``.

    Returns:
        One count per utterance, in order; ``words`` are reference characters.

    Raises:
        ValueError: If the two sequences differ in length.
    """
    _check_pairs(references, hypotheses)
    from rapidfuzz.distance import Levenshtein  # jiwer uses it, too

    counts = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        said, heard = " ".join(reference.split()), " ".join(hypothesis.split())
        edits = [edit.tag for edit in Levenshtein.editops(said, heard)]
        counts.append(
            ErrorCounts(
                substitutions=edits.count("replace"),
                deletions=edits.count("delete"),
                insertions=edits.count("insert"),
                words=len(said),
            )
        )
    return counts


def _check_pairs(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(
            f"hypotheses: expected one per reference ({len(references)}), got {len(hypotheses)}"
        )


def _count(chunks: Sequence[object], *, words: int) -> ErrorCounts:
    """Adds up jiwer's alignment chunks of one utterance."""
    totals = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in chunks:
        ref_span = chunk.ref_end_idx - chunk.ref_start_idx  # type: ignore[attr-defined]
        hyp_span = chunk.hyp_end_idx - chunk.hyp_start_idx  # type: ignore[attr-defined]
        totals[chunk.type] += max(ref_span, hyp_span)  # type: ignore[attr-defined]
    return ErrorCounts(
        substitutions=totals["substitute"],
        deletions=totals["delete"],
        insertions=totals["insert"],
        words=words,
    )


def total_errors(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    """Adds the counts of many utterances."""
    return ErrorCounts(
        substitutions=sum(count.substitutions for count in counts),
        deletions=sum(count.deletions for count in counts),
        insertions=sum(count.insertions for count in counts),
        words=sum(count.words for count in counts),
    )


def corpus_wer(counts: Sequence[ErrorCounts]) -> float:
    """Word error rate of a corpus in percent: all errors over all reference words.

    It may exceed 100 because of insertions.

    Raises:
        ValueError: If the references have no word, so that no rate exists.
    """
    total = total_errors(counts)
    if total.words == 0:
        raise ValueError("references: there is no reference word; the WER is undefined")
    return 100.0 * total.errors / total.words
