"""Word pieces by sentencepiece, with the ids that icefall and sherpa use.

`<blk>` is 0, `<sos/eos>` is 1, `<unk>` is 2.

sentencepiece reserves some characters: U+2581 stands for a space, and a line with the name of a
special token loses that name before pieces are learned. Such characters are escaped first. So a
text with only characters of the training texts is unchanged by ``decode(encode(text))``, except for
the kind and number of its spaces.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omnisparse.data.piece_scores import scores_for_sums
from omnisparse.durable import replacing
from omnisparse.errors import DataError

UNKNOWN_TEXT = "\u2047"
"""Replaces an unknown character in a decoded text; it has no spaces, so a word stays one word."""

_SPECIAL = ("<blk>", "<sos/eos>", "<unk>")
_ESCAPE = "\ue000"
"""Of Unicode's private use area: no writing has it."""
_ESCAPED = {"\u2581": "s", "\u2585": "u", "\0": "0", _ESCAPE: "e", "<": "l"}
"""Characters that sentencepiece keeps for itself, and the letter that follows the escape."""
_MEANT = {letter: character for character, letter in _ESCAPED.items()}
_NAMES = "|".join(re.escape(name[1:]) for name in _SPECIAL)
_RESERVED = re.compile(f"[\u2581\u2585\0{_ESCAPE}]|<(?={_NAMES})")
_ESCAPES = re.compile(f"{_ESCAPE}(.?)")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Text to token ids and back.

    Args:
        model: A serialised sentencepiece model whose first pieces are `<blk>`, `<sos/eos>`,
            `<unk>`.

    Raises:
        DataError: If ``model`` is not such a model.
    """

    BLANK = 0
    SOS_EOS = 1
    UNKNOWN = 2

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._model = model
        self._processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            loaded = self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise DataError("not a sentencepiece model") from error
        if not loaded or self._processor.get_piece_size() < len(_SPECIAL):
            raise DataError("not a sentencepiece model")
        first = tuple(self._processor.id_to_piece(index) for index in range(len(_SPECIAL)))
        if first != _SPECIAL:
            raise DataError(f"the tokenizer starts with {first} instead of {_SPECIAL}")

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        out: Path,
        *,
        model_type: str = "bpe",
    ) -> Tokenizer:
        """Learn word pieces and write them to a folder.

        Args:
            texts: Transcripts.
            vocab_size: Number of pieces, including the three special ones.
            out: Folder for `tokenizer.model` and `tokens.txt` (one `symbol id` per line).
            model_type: "bpe" or "unigram".

        Raises:
            ValueError: If ``model_type`` is unknown or the texts do not allow ``vocab_size``.
        """
        import sentencepiece

        if model_type not in ("bpe", "unigram"):
            raise ValueError(f"model_type must be bpe or unigram, got {model_type!r}")
        lines = [line for line in map(_escaped, texts) if line]
        if not lines:
            raise ValueError("texts must hold at least one transcript that is not blank")
        num_characters = len(set("".join(lines)) | {" "})
        smallest = num_characters + len(_SPECIAL)
        if vocab_size < smallest:
            raise ValueError(f"vocab_size must be at least {smallest} here, got {vocab_size}")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=written,
                model_type=model_type,
                vocab_size=vocab_size,
                character_coverage=1.0,
                # Transcripts are used unchanged.
                normalization_rule_name="identity",
                max_sentence_length=1 << 20,
                control_symbols=list(_SPECIAL[:2]),
                unk_id=cls.UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            largest = re.search(r"<= (\d+)", str(error))
            limit = f"at most {largest.group(1)} here" if largest else "smaller"
            raise ValueError(f"vocab_size must be {limit}, got {vocab_size}") from error
        tokenizer = cls(written.getvalue())
        tokenizer.save(out)
        return tokenizer

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.model` file.

        Raises:
            DataError: If it is missing or not a suitable model.
        """
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read tokenizer {path}: {error.strerror}") from error
        return cls(model)

    @classmethod
    def from_bytes(cls, model: bytes) -> Tokenizer:
        """The tokenizer from the bytes of `to_bytes`."""
        return cls(model)

    def to_bytes(self) -> bytes:
        """Content of `tokenizer.model`."""
        return self._model

    def tokens_txt(self) -> str:
        """Content of `tokens.txt`: `symbol id` per line, as icefall and sherpa read it."""
        symbols = (self._processor.id_to_piece(index) for index in range(self.vocab_size))
        return "".join(f"{symbol} {index}\n" for index, symbol in enumerate(symbols))

    def scores_txt(self) -> str:
        """`symbol<tab>score` per line: the `bpe.vocab` that sherpa-onnx spells hotwords with."""
        processor, special = self._processor, len(_SPECIAL)
        pieces = [processor.id_to_piece(index) for index in range(self.vocab_size)]
        scores = [processor.get_score(index) for index in range(special, self.vocab_size)]
        scores = [0.0] * special + scores_for_sums(pieces[special:], scores)
        rows = zip(pieces, scores, strict=True)
        return "".join(f"{piece}\t{score:.9g}\n" for piece, score in rows)

    def save(self, out: Path) -> None:
        """Write `tokenizer.model` and `tokens.txt` into a folder, each complete or not at all."""
        out.mkdir(parents=True, exist_ok=True)
        contents = {"tokenizer.model": self._model, "tokens.txt": self.tokens_txt().encode()}
        for name, content in contents.items():
            with replacing(out / name) as partial:
                partial.write_bytes(content)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including the three special ones."""
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; never blank or start-of-sentence, for any text."""
        return [int(token) for token in self._processor.encode(_escaped(text))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids.

        Blank and start-of-sentence are left out. An unknown token becomes :data:`UNKNOWN_TEXT`
        within its word.
        """
        pieces = [
            UNKNOWN_TEXT if token == self.UNKNOWN else self._processor.id_to_piece(int(token))
            for token in ids
            if token not in (self.BLANK, self.SOS_EOS)
        ]
        return _ESCAPES.sub(
            lambda found: _MEANT.get(found[1], found[1]), str(self._processor.decode(pieces))
        )

    def starts_word(self, token: int) -> bool:
        """Whether a word begins with this token."""
        return str(self._processor.id_to_piece(int(token))).startswith("\u2581")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._model,)


def _escaped(text: str) -> str:
    """The text with single spaces and with reserved characters of sentencepiece escaped.

    Half a surrogate pair is not a character and cannot be written as UTF-8: it becomes U+FFFD.
    """
    spaced = _SURROGATES.sub("\ufffd", " ".join(text.split()))
    return _RESERVED.sub(lambda found: _ESCAPE + _ESCAPED[found[0]], spaced)
