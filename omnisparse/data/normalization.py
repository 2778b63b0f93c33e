"""How an import may change transcripts: as it is told to, never by itself."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

_APOSTROPHES = {"'", "\u2019"}
_WITHIN_WORDS = re.compile(r"(?<=\w)['\u2019](?=\w)")


def _without_punctuation(text: str) -> str:
    """Transcript without characters of the Unicode classes P and S; see :func:`parse_rules`."""
    kept = {match.start() for match in _WITHIN_WORDS.finditer(text)}
    characters = []
    for index, character in enumerate(text):
        if index in kept:
            characters.append("'")
        elif unicodedata.category(character)[0] in "PS":
            characters.append("" if character in _APOSTROPHES else " ")
        else:
            characters.append(character)
    return "".join(characters)


_RULES: dict[str, Callable[[str], str]] = {
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "lower": str.lower,
    "upper": str.upper,
    "punctuation": _without_punctuation,
}
RULES = tuple(_RULES)
"""Legal rules, in the order in which they are applied."""


def parse_rules(text: str) -> tuple[str, ...]:
    """Rules of a comma-separated list, in the order in which they are applied.

    `nfc` and `nfkc` compose characters (NFKC also replaces ligatures and wide letters), `lower` and
    `upper` change the case, `punctuation` takes away punctuation and symbols: an apostrophe within
    a word stays, as ', any other character gives way to a space. After any rule, runs of white
    space become one space.

    Raises:
        ValueError: If a rule is unknown, or two contradict each other; names the legal ones.
    """
    asked = [rule.strip() for rule in text.split(",") if rule.strip()]
    for rule in asked:
        if rule not in _RULES:
            raise ValueError(f"normalize must be of {', '.join(RULES)}, got {rule!r}")
    for pair in (("lower", "upper"), ("nfc", "nfkc")):
        if set(pair) <= set(asked):
            raise ValueError(f"normalize: {pair[0]} and {pair[1]} exclude each other")
    return tuple(rule for rule in RULES if rule in asked)


def normalize(text: str, rules: Sequence[str]) -> str:
    """A transcript after the rules; as it is where there is none."""
    if not rules:
        return text
    for rule in rules:
        text = _RULES[rule](text)
    return " ".join(text.split())
