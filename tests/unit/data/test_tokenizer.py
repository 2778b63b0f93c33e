"""Word pieces: ids as icefall has them, text unchanged by a round trip."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnisparse.data.tokenizer import UNKNOWN_TEXT, Tokenizer
from omnisparse.data.unseen import find_unseen
from omnisparse.errors import DataError
from omnisparse.evaluation.wer import word_errors


def test_special_ids(tokenizer: Tokenizer) -> None:
    assert (Tokenizer.BLANK, Tokenizer.SOS_EOS, Tokenizer.UNKNOWN) == (0, 1, 2)
    rows = tokenizer.tokens_txt().splitlines()
    assert rows[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert len(rows) == tokenizer.vocab_size == 40


def test_round_trip(tokenizer: Tokenizer) -> None:
    text = "close the seven window"
    ids = tokenizer.encode(text)
    assert min(ids) > 2
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, *ids, 1, 0]) == text
    assert tokenizer.decode([]) == ""


def test_text_cannot_name_special_tokens(tokenizer: Tokenizer) -> None:
    assert not {0, 1} & set(tokenizer.encode("<blk> open <sos/eos> <s> </s>"))


def test_unknown_letters_are_unknown(tokenizer: Tokenizer) -> None:
    assert 2 in tokenizer.encode("OPEN")


def test_files_bytes_and_pickle_give_the_same(tmp_path: Path) -> None:
    trained = Tokenizer.train(["a b c abc abc"] * 5, 9, tmp_path, model_type="unigram")
    again = (
        Tokenizer.load(tmp_path / "tokenizer.model"),
        Tokenizer.from_bytes(trained.to_bytes()),
        pickle.loads(pickle.dumps(trained)),
    )
    for one in again:
        assert one.encode("abc a") == trained.encode("abc a")
    assert (tmp_path / "tokens.txt").read_text() == trained.tokens_txt()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.model", "tokens.txt"]


def test_training_twice_gives_the_same(tmp_path: Path) -> None:
    texts = [f"word{index % 17} some more text" for index in range(100)]
    first = Tokenizer.train(texts, 40, tmp_path / "a").to_bytes()
    assert Tokenizer.train(texts, 40, tmp_path / "b").tokens_txt() == Tokenizer(first).tokens_txt()


def test_impossible_sizes_name_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size must be at most"):
        Tokenizer.train(["a b a b"], 500, tmp_path)
    with pytest.raises(ValueError, match="vocab_size must be at least"):
        Tokenizer.train(["abcdefghij klm"], 5, tmp_path)
    with pytest.raises(ValueError, match="not blank"):
        Tokenizer.train(["", " "], 50, tmp_path)
    with pytest.raises(ValueError, match="model_type"):
        Tokenizer.train(["a"], 50, tmp_path, model_type="char")


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read tokenizer"):
        Tokenizer.load(tmp_path / "none")
    for content in (b"", b"garbage" * 30):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(DataError, match=r"sentencepiece|starts with"):
            Tokenizer.load(tmp_path / "bad")


SPECIAL_TEXTS = [
    "the tag <unk> in a text",
    "a<blk>b <sos/eos>",
    "<s> </s> <pad> <0x41> <<unk>>",
    "snake\u2581case and \u2581\u2581",
    "block \u2585 elements",
    "private \ue000s use \ue000",
    "null \0 character",
    "question \u2047 marks \u2047x",
    "1 < 2 > 0",
    "na\u00efve nai\u0308ve",
    "\u6253\u5f00\u5ba2\u5385\u7684\u706f",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600 \u200b\u200d",
]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_texts_with_reserved_characters_come_back(tmp_path: Path, model_type: str) -> None:
    characters = set("".join(SPECIAL_TEXTS))
    tokenizer = Tokenizer.train(
        SPECIAL_TEXTS * 3, len(characters) + 12, tmp_path, model_type=model_type
    )
    for text in SPECIAL_TEXTS:
        ids = tokenizer.encode(text)
        assert min(ids) > Tokenizer.UNKNOWN
        assert tokenizer.decode(ids) == text
    assert find_unseen(tokenizer, SPECIAL_TEXTS).unseen == 0


@pytest.mark.parametrize("text", [*SPECIAL_TEXTS, "<unk>", "a<sos/eos>", "<blk><blk>", "\u2581"])
def test_each_such_text_comes_back_where_no_other_has_its_characters(
    tmp_path: Path, text: str
) -> None:
    """The names of special tokens take their own characters out of what is learned."""
    tokenizer = Tokenizer.train([text, "some words"], len(set(text)) + 16, tmp_path)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=12)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_any_text_comes_back_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    texts = [*texts, "some words"]
    out = tmp_path_factory.mktemp("any")
    needed = len(set("".join(texts))) + 20
    try:
        tokenizer = Tokenizer.train(texts, needed, out)
    except ValueError as error:  # so few texts do not allow so many pieces
        limit = re.search(r"vocab_size must be at most (\d+) here, got \d+$", str(error))
        assert limit is not None
        tokenizer = Tokenizer.train(texts, int(limit[1]), out)
    for text in texts:
        spaced = " ".join(text.split())
        back = tokenizer.decode(tokenizer.encode(text))
        assert back == spaced or find_unseen(tokenizer, [text]).unseen > 0
        if not re.search("[\ud800-\udfff]", text):
            assert back == spaced


def test_an_unknown_letter_stays_within_its_word(tokenizer: Tokenizer) -> None:
    reference = "close the se\u00efen window"
    hypothesis = tokenizer.decode(tokenizer.encode(reference))
    assert hypothesis == f"close the se{UNKNOWN_TEXT}en window"
    (counts,) = word_errors([reference], [hypothesis])
    assert (counts.errors, counts.substitutions) == (1, 1)


def test_unseen_characters_are_counted_and_named(tokenizer: Tokenizer) -> None:
    texts = ["close the window", "Close the se\u00efen window", ""]
    found = find_unseen(tokenizer, texts)
    assert (found.words, found.unseen, found.transcripts) == (7, 2, 1)
    assert found.characters == ("C", "\u00ef")
    assert found.examples == ("Close", "se\u00efen")
    line = found.describe()
    assert line.startswith("2 of 7 words (28.6 %, in 1 transcripts) hold characters")
    assert "C (U+0043), \u00ef (U+00EF); the first: Close, se\u00efen." in line
    assert found.cure is None
    assert find_unseen(tokenizer, texts[:1]).describe() == ""


@pytest.mark.parametrize(
    ("trained", "met", "cure"),
    [
        ("caf\u00e9", "cafe\u0301", "nfc"),
        ("hello", "HELLO", "lower"),
        ("HELLO", "hello", "upper"),
        ("fish", "\ufb01sh", "nfkc"),
        ("hello you", "hello-you!", "punctuation"),
        ("caf\u00e9", "CAFE\u0301", "nfc,lower"),
        ("it's here", "It\u2019s here.", "lower,punctuation"),
        ("cafe\u0301", "caf\u00e9", None),
        ("fish", "\u9c7c", None),
    ],
)
def test_a_change_of_the_transcripts_that_helps_is_named(
    tmp_path: Path, trained: str, met: str, cure: str | None
) -> None:
    tokenizer = Tokenizer.train([trained], len(set(trained) | {" "}) + 3, tmp_path)
    found = find_unseen(tokenizer, [met])
    assert (found.unseen, found.cure) == (found.words if "here" not in met else 2, cure)
    assert (
        f"; after `omnisparse prepare import --normalize {cure}` it could" in found.describe()
    ) == (cure is not None)


def test_no_raw_text_of_the_library_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most") as caught:
        Tokenizer.train(["a b a b"], 500, tmp_path)
    assert "INTERNAL" not in str(caught.value)
    assert "src/" not in str(caught.value)
    with pytest.raises(DataError) as refused:
        Tokenizer(b"garbage" * 30)
    assert "src/" not in str(refused.value)
