"""Scores whose largest sum spells words as the tokenizer does."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnisparse.data.piece_scores import scores_for_sums
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.synthetic.text import ASSISTANT, vocabulary


def rows_of(text: str) -> list[tuple[str, float]]:
    pairs = [line.split("\t") for line in text.splitlines()]
    return [(piece, float(score)) for piece, score in pairs]


def spelled(word: str, scores: dict[str, float]) -> list[str]:
    """The pieces of a word with the largest sum of scores, as sherpa-onnx finds them."""
    text = f"\u2581{word}"
    best: list[tuple[float, list[str]]] = [(0.0, [])] * (len(text) + 1)
    for start in reversed(range(len(text))):
        ways = [
            (scores[text[start:end]] + best[end][0], [text[start:end], *best[end][1]])
            for end in range(start + 1, len(text) + 1)
            if text[start:end] in scores
        ]
        best[start] = max(ways, key=lambda way: way[0])
    return best[0][1]


@pytest.mark.parametrize(
    ("kind", "size"), [("bpe", 60), ("bpe", 128), ("bpe", 500), ("unigram", 300)]
)
def test_sums_spell_words_as_the_tokenizer_does(kind: str, size: int, tmp_path: Path) -> None:
    words = sorted(vocabulary(ASSISTANT))
    tokenizer = Tokenizer.train(words, size, tmp_path, model_type=kind)
    rows = rows_of(tokenizer.scores_txt())
    symbols = [line.split(" ")[0] for line in tokenizer.tokens_txt().splitlines()]
    assert [piece for piece, _ in rows] == symbols
    scores = dict(rows[3:])
    wrong = [
        word
        for word in words
        if spelled(word, scores) != [symbols[token] for token in tokenizer.encode(word)]
    ]
    assert len(wrong) <= 0.005 * len(words), wrong


def test_scores_of_a_unigram_model_are_its_own() -> None:
    assert scores_for_sums(["a", "b", "ab"], [-1.5, -2.0, -1.0]) == [-1.5, -2.0, -1.0]


def test_merges_of_a_piece_are_counted_from_the_first() -> None:
    """`bc` comes before `ab`: `abc` is `a bc`, although `ab` and `c` are pieces, too."""
    pieces = ["bc", "ab", "a", "b", "c", "named"]
    scores = scores_for_sums(pieces, [-0.0, -1.0, -2.0, -3.0, -4.0, -5.0])
    found = dict(zip(pieces, scores, strict=True))
    assert found["a"] == found["b"] == found["c"] == 0
    assert found["bc"] > found["ab"] > found["named"] > 0
