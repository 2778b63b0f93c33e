"""The result of an evaluation: the errors of every utterance, and the rates of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omnisparse.evaluation.clusters import Unit, num_speakers, speakers_note
from omnisparse.evaluation.confidence import Interval, confidence_interval, interval_note
from omnisparse.evaluation.notes import unspaced_note
from omnisparse.evaluation.wer import (
    ErrorCounts,
    character_errors,
    corpus_wer,
    total_errors,
    word_errors,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """The facts about an utterance in the corpus."""

    id: str
    """The utterance's id in its corpus."""

    reference: str
    """Its transcript."""

    seconds: float
    """Duration of its audio."""

    speaker: str | None = None
    """Its speaker; None if the corpus names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UtteranceResult(Said):
    """What was said and what was recognised in one utterance."""

    hypothesis: str
    """The model's transcript."""

    counts: ErrorCounts
    """Word errors of this utterance."""

    characters: ErrorCounts
    """Character errors of this utterance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Word and character errors of a model on a corpus; rates in percent, times in seconds."""

    wer: float
    """Word error rate, percent."""

    wer_low: float | None
    """Lower end of the 95 % interval, percent; None where there is none."""

    wer_high: float | None
    """Upper end of the 95 % interval, percent; None where there is none."""

    interval: Unit | Literal["wilson"] | None
    """What the interval of the WER leaves out in turn, ``speakers`` or ``utterances``, or
    ``wilson``: see :mod:`omnisparse.evaluation.confidence`."""

    speakers: int
    """Speakers that the corpus names; 0 if it names none."""

    words: int
    """Reference words."""

    substitutions: int
    """Words recognised as other words."""

    deletions: int
    """Words missed."""

    insertions: int
    """Words made up."""

    cer: float
    """Character error rate, percent; spaces between words are characters."""

    cer_low: float | None
    """Lower end of the 95 % interval, percent; None where there is none."""

    cer_high: float | None
    """Upper end of the 95 % interval, percent; None where there is none."""

    characters: int
    """Reference characters."""

    utterances: int
    """Utterances evaluated."""

    audio_seconds: float
    """Duration of the audio."""

    seconds: float
    """Wall time of reading, features and decoding. With several processes from when all of them
    have the model to the last text, so neither their start nor loading is part of it."""

    rtf: float
    """Real-time factor ``seconds / audio_seconds``; below 1 is faster than real time."""

    hypotheses: tuple[UtteranceResult, ...] = field(repr=False)
    """One entry per utterance, in the order of the corpus."""

    @property
    def counts(self) -> list[ErrorCounts]:
        """Word errors of each utterance, in the order of the corpus."""
        return [utterance.counts for utterance in self.hypotheses]

    @property
    def speakers_of(self) -> list[str | None]:
        """The speaker of each utterance, in the order of the corpus."""
        return [utterance.speaker for utterance in self.hypotheses]

    def notes(self) -> list[str]:
        """Remarks about the rates for the user, one line each."""
        interval = Interval(self.wer_low, self.wer_high, self.interval)
        found = (
            unspaced_note([utterance.reference for utterance in self.hypotheses]),
            interval_note(self.counts, interval),
            speakers_note(self.speakers_of),
        )
        return [note for note in found if note]

    def to_dict(self) -> dict[str, Any]:
        """The figures without the transcripts, ready for JSON."""
        names = [name for name in self.__dataclass_fields__ if name != "hypotheses"]
        return {name: getattr(self, name) for name in names}


def score(said: Sequence[Said], hypotheses: Sequence[str], *, seconds: float) -> EvaluationResult:
    """Turns transcripts into an :class:`EvaluationResult`.

    Args:
        said: The utterances.
        hypotheses: What was recognised, in the order of ``said``.
        seconds: Wall time spent on it.

    Raises:
        ValueError: If the sequences differ in length or the references hold no word.
    """
    references = [one.reference for one in said]
    counts = word_errors(references, hypotheses)
    characters = character_errors(references, hypotheses)
    total = total_errors(counts)
    audio_seconds = sum(one.seconds for one in said)
    speakers = [one.speaker for one in said]
    low, high, method = confidence_interval(counts, speakers=speakers)
    cer_low, cer_high, _ = confidence_interval(characters, speakers=speakers)
    return EvaluationResult(
        wer=corpus_wer(counts),
        wer_low=low,
        wer_high=high,
        interval=method,
        speakers=num_speakers(speakers),
        words=total.words,
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
        cer=corpus_wer(characters),
        cer_low=cer_low,
        cer_high=cer_high,
        characters=total_errors(characters).words,
        utterances=len(counts),
        audio_seconds=audio_seconds,
        seconds=seconds,
        rtf=seconds / audio_seconds if audio_seconds > 0 else 0.0,
        hypotheses=tuple(
            UtteranceResult(
                id=one.id,
                reference=one.reference,
                seconds=one.seconds,
                speaker=one.speaker,
                hypothesis=hypothesis,
                counts=of_words,
                characters=of_characters,
            )
            for one, hypothesis, of_words, of_characters in zip(
                said, hypotheses, counts, characters, strict=True
            )
        ),
    )
