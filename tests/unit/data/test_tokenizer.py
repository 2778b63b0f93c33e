"""Word pieces: ids as icefall has them, text unchanged by a round trip."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import DataError


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
