"""Word and character errors against jiwer and brute force."""

from __future__ import annotations

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.evaluation.wer import (
    ErrorCounts,
    character_errors,
    corpus_wer,
    total_errors,
    word_errors,
)

sentences = st.lists(st.sampled_from(["turn", "on", "the", "light", "off"]), max_size=6).map(
    " ".join
)


def _edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance by the textbook table."""
    row = list(range(len(hypothesis) + 1))
    for i, ref_word in enumerate(reference, start=1):
        previous, row = row, [i]
        for j, hyp_word in enumerate(hypothesis, start=1):
            row.append(
                min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (ref_word != hyp_word))
            )
    return row[-1]


@pytest.mark.parametrize("space", ["\t", "\n", "\u00a0", "\u3000", "  "])
def test_any_whitespace_separates_words(space: str) -> None:
    for texts in ([f"a{space}b"], ["a b"]), (["a b"], [f"a{space}b"]):
        (count,) = word_errors(*texts)
        assert (count.errors, count.words) == (0, 2)


@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=8))
def test_word_errors_are_minimal_and_add_up(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = zip(*pairs, strict=True)
    for (reference, hypothesis), count in zip(
        pairs, word_errors(references, hypotheses), strict=True
    ):
        assert count.errors == _edit_distance(reference.split(), hypothesis.split())
        assert count.words == len(reference.split())
        assert count.words - count.deletions + count.insertions == len(hypothesis.split())


@given(st.lists(st.tuples(sentences.filter(bool), sentences), min_size=1, max_size=8))
def test_corpus_wer_is_jiwers(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    expected = 100 * jiwer.wer(references, hypotheses)
    assert corpus_wer(word_errors(references, hypotheses)) == pytest.approx(expected)


def test_total_adds_every_kind() -> None:
    counts = word_errors(["a b c", "a b", "a"], ["a x c", "a", "a b b"])
    assert total_errors(counts) == ErrorCounts(substitutions=1, deletions=1, insertions=2, words=6)


def test_empty_reference_counts_only_insertions() -> None:
    counts = word_errors(["", "play music"], ["um yes", "play music"])
    assert counts[0] == ErrorCounts(insertions=2)
    assert corpus_wer(counts) == pytest.approx(100.0)


def test_no_word_at_all_has_no_rate() -> None:
    with pytest.raises(ValueError, match="there is no reference word"):
        corpus_wer(word_errors([""], ["a"]))
    with pytest.raises(ValueError, match="there is no reference word"):
        corpus_wer([])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="hypotheses"):
        word_errors(["a"], [])


characters = st.text(st.sampled_from("ab \u6253\u0301"), max_size=8)


@given(st.lists(st.tuples(characters, characters), min_size=1, max_size=4))
def test_character_error_rate_is_jiwers(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (
        [" ".join(text.split()) for text in side] for side in zip(*pairs, strict=True)
    )
    counts = character_errors(references, hypotheses)
    assert [count.words for count in counts] == [len(text) for text in references]
    if any(references):
        expected = 100.0 * jiwer.process_characters(references, hypotheses).cer
        assert corpus_wer(counts) == pytest.approx(expected)


def test_characters_of_a_sentence_without_spaces_count_one_by_one() -> None:
    said, heard = "\u6253\u5f00\u5ba2\u5385\u7684\u706f", "\u6253\u5f00\u5385\u7684\u5bff"
    assert word_errors([said], [heard])[0] == ErrorCounts(substitutions=1, words=1)
    (count,) = character_errors([said], [heard])
    assert (count.errors, count.words) == (2, 6)
    with pytest.raises(ValueError, match="hypotheses: expected one per reference"):
        character_errors([said], [])
