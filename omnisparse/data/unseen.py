"""Words that a tokenizer cannot write, because its training texts lacked some of their characters.

A model with such a tokenizer can never recognise these words, so they are reported before a
training and in every evaluation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omnisparse.data.normalization import normalize

if TYPE_CHECKING:
    from omnisparse.data.tokenizer import Tokenizer

_SHOWN = 5
"""Number of characters, and of words, that a message names."""

_RULES = (
    ("nfc",),
    ("lower",),
    ("upper",),
    ("punctuation",),
    ("nfkc",),
    ("nfc", "lower"),
    ("lower", "punctuation"),
    ("upper", "punctuation"),
    ("nfc", "lower", "punctuation"),
)
"""Changes of transcripts that may help, the smallest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnseenWords:
    """The words of some texts that a tokenizer cannot write."""

    words: int
    """Words of the texts."""
    unseen: int
    """Those that do not survive encoding and decoding."""
    transcripts: int
    """Texts that hold at least one of them."""
    characters: tuple[str, ...]
    """Their characters that the tokenizer does not know, in order of first appearance."""
    examples: tuple[str, ...]
    """The first few different words."""
    cure: str | None
    """Rules of ``prepare import --normalize`` that make words of them that can be written, such as
    ``nfc,lower``; None where none do."""

    @property
    def percent(self) -> float:
        """Share of the words, in percent; 0 if there is no word."""
        return 100.0 * self.unseen / self.words if self.words else 0.0

    def describe(self) -> str:
        """One line for the user; empty if every word can be written."""
        if not self.unseen:
            return ""
        shown = ", ".join(_name(character) for character in self.characters[:_SHOWN])
        more = len(self.characters) - _SHOWN
        line = (
            f"{self.unseen:,} of {self.words:,} words ({self.percent:.1f} %, in "
            f"{self.transcripts:,} transcripts) hold characters that the tokenizer has never seen: "
            f"{shown}{f' and {more} more' if more > 0 else ''}; the first: "
            f"{', '.join(self.examples)}. No model with this tokenizer can write them"
        )
        if self.cure is None:
            return line
        return f"{line}; after `omnisparse prepare import --normalize {self.cure}` it could"


def find_unseen(tokenizer: Tokenizer, texts: Iterable[str]) -> UnseenWords:
    """Counts the words of texts that a tokenizer cannot write.

    Args:
        tokenizer: Any tokenizer.
        texts: Transcripts.
    """
    known: dict[str, bool] = {}
    characters: dict[str, None] = {}
    words = unseen = transcripts = 0
    for text in texts:
        found = 0
        for word in text.split():
            if word not in known:
                known[word] = _can_write(tokenizer, word)
                if not known[word]:
                    characters |= dict.fromkeys(_unknown_characters(tokenizer, word))
            words += 1
            found += not known[word]
        unseen += found
        transcripts += found > 0
    missing = [word for word, is_known in known.items() if not is_known]
    return UnseenWords(
        words=words,
        unseen=unseen,
        transcripts=transcripts,
        characters=tuple(characters),
        examples=tuple(missing[:_SHOWN]),
        cure=_find_cure(tokenizer, missing),
    )


def _find_cure(tokenizer: Tokenizer, words: Sequence[str]) -> str | None:
    """The first rules after which all words can be written."""
    for rules in _RULES if words else ():
        changed = (normalize(word, rules) for word in words)
        if all(_can_write(tokenizer, word) for word in changed):
            return ",".join(rules)
    return None


def _can_write(tokenizer: Tokenizer, word: str) -> bool:
    return tokenizer.decode(tokenizer.encode(word)) == word


def _unknown_characters(tokenizer: Tokenizer, word: str) -> list[str]:
    """The unknown characters; the whole word if each of its characters alone is known."""
    return [c for c in word if not _can_write(tokenizer, c)] or [word]


def _name(character: str) -> str:
    """A character as people can read and look it up."""
    if len(character) > 1:
        return character
    code = f"U+{ord(character):04X}"
    visible = character.isprintable() and not unicodedata.combining(character)
    return f"{character} ({code})" if visible else code
