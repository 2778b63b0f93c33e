"""What a search finds: tokens with their places and probabilities, and the words they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

BLANK = 0
"""Token id of the transducer's blank and the start of its predictor."""

SOS_EOS = 1
"""Token id that starts and ends a sentence of LAS."""

NO_FINITE_SCORE = (
    "the model's scores are no numbers (do its weights overflow?), so nothing was found"
)


class FoundToken(NamedTuple):
    """One token of a recording."""

    token: int
    """Its id."""

    frame: float
    """Encoder frame that it was found in, from 0. Of LAS: where its CTC layer hears it, or without
    one the mean of where the attention looks."""

    log_probability: float
    """Natural log of its probability given the tokens before, at most 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A recognised word, when it was heard and how sure the model is."""

    text: str
    """As written."""

    start: float
    """Seconds from the start of the recording; a streaming model hears a word a little late."""

    end: float
    """Seconds, at least ``start`` and at most the start of the next word."""

    confidence: float
    """In [0, 1]: the smallest probability of its tokens, each given the tokens before."""


class Spelling(Protocol):
    """What is asked of a tokenizer."""

    def starts_word(self, token: int) -> bool:
        """Whether a word begins with this token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        ...


def words_of(found: Sequence[FoundToken], spelling: Spelling, frame_seconds: float) -> list[Word]:
    """Joins tokens to words.

    Args:
        found: Tokens in their order.
        spelling: The tokenizer.
        frame_seconds: Seconds of audio of an encoder frame.
    """
    groups: list[list[FoundToken]] = []
    for item in found:
        if not groups or spelling.starts_word(item.token):
            groups.append([])
        groups[-1].append(item)
    words: list[Word] = []
    for group in groups:
        text = spelling.decode([item.token for item in group]).strip()
        if not text:
            continue
        start = min(item.frame for item in group) * frame_seconds
        if words:  # attention may look back; words do not
            start = max(start, words[-1].start)
            words[-1] = replace(words[-1], end=min(words[-1].end, start))
        words.append(
            Word(
                text=text,
                start=start,
                end=max(start, (max(item.frame for item in group) + 1) * frame_seconds),
                confidence=math.exp(min(0.0, *(item.log_probability for item in group))),
            )
        )
    return words
