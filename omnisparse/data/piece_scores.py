"""Scores with which the largest sum cuts a word into the pieces that BPE makes of it.

sherpa-onnx spells hotwords with the pieces whose scores have the largest sum. A unigram model's
scores, log-probabilities, are made for that. A BPE model's are minus the number of the merge that
made a piece, for which sums mean nothing: with 500 pieces a third of the words of the embedded
corpus came out in other pieces than the net writes, and such a hotword has no effect
(`findings/sherpa_onnx_bpe_hotwords.sh`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_STEEPNESS = 3
_FLAT = 10
"""Of the weight of a merge by its number: steeper, and late merges are lost in float32's rounding;
flatter, and several late ones outweigh an early one. Of words that were tried, these left the
fewest in other pieces, for 100 to 2,000 pieces."""


def scores_for_sums(pieces: Sequence[str], scores: Sequence[float]) -> list[float]:
    """Scores that may be added up.

    BPE does the earliest merge that is possible, again and again. So of all ways to cut a word, its
    way has the most of the first merge, among those with equally many the most of the second, and
    so on. Weights that fall fast with the number of the merge make a sum of that order. Words in
    which many late merges stand against one early one may still be cut otherwise.

    Args:
        pieces: All pieces of a sentencepiece model that may stand in a text.
        scores: Their scores: whole numbers, if it is a BPE model.

    Returns:
        The scores themselves, unless it is a BPE model.
    """
    if any(score != int(score) for score in scores):
        return list(scores)
    numbers = {piece: -score for piece, score in zip(pieces, scores, strict=True)}

    def weight(piece: str) -> float:
        return float((1 + numbers[piece] / _FLAT) ** -_STEEPNESS)

    return [sum(weight(merged) for merged in _merges(piece, numbers)) for piece in pieces]


def _merges(piece: str, numbers: dict[str, float]) -> list[str]:
    """The pieces that BPE makes on the way to one, itself included; none for a character."""
    parts, made = list(piece), []
    while len(parts) > 1:
        pairs = [left + right for left, right in pairwise(parts)]
        known = [place for place, pair in enumerate(pairs) if pair in numbers]
        if not known:
            return [piece]  # named by whoever trained the model, and made of no others
        place = min(known, key=lambda place: numbers[pairs[place]])
        parts[place : place + 2] = [pairs[place]]
        made.append(pairs[place])
    return made
