"""The grammar, the split by sentence, and the normalisation of a user's text."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from omnisparse.errors import DataError
from omnisparse.synthetic.text import (
    ASSISTANT,
    ASSISTANT_EASY,
    GRAMMARS,
    SPLITS,
    assistant_sentences,
    normalise_sentence,
    read_sentences,
    spell_number,
    split_of,
    text_sentences,
    vocabulary,
)

LEGAL = re.compile(r"[a-z']+( [a-z']+)*")


def test_assistant_has_the_promised_templates_and_words() -> None:
    assert len(ASSISTANT["sentence"]) >= 15
    assert len(vocabulary(ASSISTANT)) >= 400


def test_easy_has_eight_templates_and_fewer_words() -> None:
    assert len(ASSISTANT_EASY["sentence"]) == 8
    assert 100 <= len(vocabulary(ASSISTANT_EASY)) <= 250


@pytest.mark.parametrize("preset", GRAMMARS)
def test_sentences_are_legal_and_their_splits_disjoint(preset: str) -> None:
    grammar = GRAMMARS[preset]
    heard = {
        split: list(itertools.islice(assistant_sentences(grammar, split, 0), 1000))
        for split in SPLITS
    }
    words = {word for sentences in heard.values() for s in sentences for word in s.split()}
    assert words <= vocabulary(grammar)
    for split, sentences in heard.items():
        assert all(LEGAL.fullmatch(sentence) for sentence in sentences)
        assert all(split_of(sentence, 0) == split for sentence in sentences)
    for one, other in itertools.combinations(SPLITS, 2):
        assert not set(heard[one]) & set(heard[other])


def test_full_grammar_hardly_repeats() -> None:
    sentences = list(itertools.islice(assistant_sentences(ASSISTANT, "train", 0), 1000))
    assert len(set(sentences)) > 990


def test_an_exhausted_template_repeats_instead_of_blocking() -> None:
    grammar = {"sentence": ("say {x}",), "x": tuple("abcdefghijklmnopqrst")}
    sentences = list(itertools.islice(assistant_sentences(grammar, "train", 0), 100))
    assert len(sentences) == 100
    assert 5 < len(set(sentences)) < 20


def test_seed_decides_the_sentences() -> None:
    def first(seed: int) -> list[str]:
        return list(itertools.islice(assistant_sentences(ASSISTANT, "train", seed), 20))

    assert first(3) == first(3)
    assert first(3) != first(4)


@pytest.mark.parametrize("num_sentences", [3, 10, 100])
def test_text_splits_are_disjoint_and_complete(num_sentences: int) -> None:
    sentences = [f"sentence {spell_number(n)}" for n in range(num_sentences)]
    heard = {
        split: list(itertools.islice(text_sentences(sentences, split, 0), 3 * num_sentences))
        for split in SPLITS
    }
    assert set().union(*heard.values()) == set(sentences)
    assert sum(len(set(split)) for split in heard.values()) == num_sentences
    own = len(set(heard["train"]))
    assert set(heard["train"][:own]) == set(heard["train"][own : 2 * own])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (105, "one hundred and five"),
        (21_300, "twenty one thousand three hundred"),
    ],
)
def test_spell_number(number: int, words: str) -> None:
    assert spell_number(number) == words


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_spell_number_refuses_what_it_cannot_spell(number: int) -> None:
    with pytest.raises(ValueError, match=r"\[0, 999999\]"):
        spell_number(number)


@pytest.mark.parametrize(
    ("line", "normalised"),
    [
        ("  Hello,   WORLD!  ", "hello world"),
        ("It\u2019s a caf\u00e9", "it's a cafe"),
        ("well-known 'quotes'", "well known 'quotes'"),
        ("1,234 sheep", "one thousand two hundred and thirty four sheep"),
        ("agent 007", "agent zero zero seven"),
        ("\u0414\u0430 -- ' '", ""),
        ("", ""),
    ],
)
def test_normalise_sentence(line: str, normalised: str) -> None:
    assert normalise_sentence(line) == normalised
    assert normalise_sentence(normalised) == normalised


def test_read_sentences_drops_empty_lines_and_duplicates_and_cuts_long_ones(
    tmp_path: Path,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One.\n\n  ...\none\nTwo\n" + "word " * 70 + "\n", encoding="utf-8")
    sentences = read_sentences(text)
    assert sentences[:2] == ["one", "two"]
    assert [len(sentence.split()) for sentence in sentences[2:]] == [30, 10]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 different sentences"),
        (b"one\nOne\ntwo", "has 2 different sentences"),
        (b"caf\xe9\n", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_read_sentences_names_what_is_wrong(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_sentences(text)
    assert "\n" not in str(error.value)
