"""Remarks about a test set for the user: no spaces, few utterances, unknown characters.

A word error rate needs spaces between words, an interval needs many utterances, and a model needs
characters that its tokenizer knows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from omnisparse.data.unseen import find_unseen
from omnisparse.evaluation.clusters import speakers_note
from omnisparse.evaluation.confidence import few_note

if TYPE_CHECKING:
    from omnisparse.data.tokenizer import Tokenizer

_WITHOUT_SPACES = (
    "CJK ",
    "IDEOGRAPHIC ",
    "HIRAGANA ",
    "KATAKANA",
    "BOPOMOFO ",
    "YI ",
    "THAI ",
    "LAO ",
    "KHMER ",
    "MYANMAR ",
    "TIBETAN ",
    "TAI ",
    "NEW TAI ",
    "JAVANESE ",
    "BALINESE ",
)
"""First words of the Unicode names of letters of scripts without spaces between words."""

_FEWEST_SPACES = 0.1
"""With fewer spaces per letter of such a script, a text is not separated into words. Words of these
languages have 1 to 5 letters; spaces between sentences or phrases come every 15 to 40 letters."""

_LONGEST_MEAN_WORD = 15.0
"""If words have more characters on average, spaces must be missing, in any script: in the languages
with the longest written words, the mean is below 12."""


def is_unspaced(texts: Iterable[str]) -> bool:
    """Whether texts have (almost) no spaces between words, so that a "word" is a whole sentence.

    True if most letters are of a script that is written without spaces, and there is less than one
    space per ten such letters. Also true, in any script, if the mean "word" has 15 characters or
    more.

    Args:
        texts: Transcripts of one corpus.
    """
    spaces = words = characters = letters = without = 0
    for text in texts:
        found = text.split()
        words += len(found)
        spaces += sum(
            _needs_no_spaces(before[-1]) and _needs_no_spaces(after[0])
            for before, after in pairwise(found)
        )
        for word in found:
            characters += len(word)
            letters += sum(character.isalpha() for character in word)
            without += sum(map(_needs_no_spaces, word))
    if not words:
        return False
    if characters >= _LONGEST_MEAN_WORD * words:
        return True
    return 2 * without > letters and spaces < _FEWEST_SPACES * without


def unspaced_note(texts: Iterable[str]) -> str | None:
    """A remark for the user if the word error rate of texts means little; else None."""
    if not is_unspaced(texts):
        return None
    return (
        "the transcripts have (almost) no spaces, so the WER counts a whole sentence as one word: "
        "use the character error rate (CER)"
    )


def length_note(
    seconds: Sequence[float], trained: float | None, *, cut_above: float | None, streams: bool
) -> str | None:
    """A line where audio is longer than what a net was trained on; None elsewhere.

    Args:
        seconds: Durations of the utterances or recordings.
        trained: Longest utterance that the net was trained on, in seconds; None where nobody knows.
        cut_above: Length above which audio is cut at pauses; None for never.
        streams: Whether the net recognises audio while it arrives, so that it need not be cut.
    """
    # A length may be rounded: half a frame is no difference.
    long = [one for one in seconds if trained is not None and one > trained + 0.005]
    if not long:
        return None
    if cut_above is not None:
        happens = f"above {cut_above:.1f} s, audio is cut at pauses and recognised in pieces"
    elif streams:
        happens = "a net that streams hears any length, but was not trained on such"
    else:
        happens = "recognised as a whole, words may be lost"
    what = "it is" if len(seconds) == 1 else f"{len(long):,} of {len(seconds):,} utterances are"
    longest = "" if len(seconds) == 1 else f" (longest: {max(long):.1f} s)"
    return f"{what} longer than the {trained:.1f} s that the net was trained on{longest}: {happens}"


def corpus_notes(
    references: Sequence[str],
    tokenizers: Iterable[Tokenizer],
    speakers: Sequence[str | None] | None,
) -> list[str]:
    """Remarks about problems of a test set that are known before recognition, one line each.

    Args:
        references: Its transcripts.
        tokenizers: Tokenizers of the tested models; equal ones are reported once.
        speakers: Speaker of each utterance; None if it names none.
    """
    distinct = {tokenizer.to_bytes(): tokenizer for tokenizer in tokenizers}.values()
    found = [
        unspaced_note(references),
        few_note(sum(1 for text in references if text.split())),
        speakers_note(speakers),
        *(find_unseen(tokenizer, references).describe() for tokenizer in distinct),
    ]
    return [note for note in dict.fromkeys(found) if note]


@lru_cache(maxsize=1 << 16)
def _needs_no_spaces(character: str) -> bool:
    """Whether a character is of a script that is written without spaces."""
    return character > "\u0dff" and unicodedata.name(character, "").startswith(_WITHOUT_SPACES)
