"""Word pieces by sentencepiece, with the ids that icefall and sherpa use.

`<blk>` is 0, `<sos/eos>` is 1, `<unk>` is 2.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omnisparse.durable import replacing
from omnisparse.errors import DataError

_SPECIAL = ("<blk>", "<sos/eos>", "<unk>")


class Tokenizer:
    """Text to token ids and back.

    Args:
        model: A serialised sentencepiece model whose first pieces are `<blk>`, `<sos/eos>`,
            `<unk>`.

    Raises:
        DataError: If ``model`` is no such model.
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
            raise DataError(f"not a sentencepiece model: {error}") from error
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
            vocab_size: Pieces, the three special ones included.
            out: Folder for `tokenizer.model` and `tokens.txt` (one `symbol id` per line).
            model_type: "bpe" or "unigram".

        Raises:
            ValueError: If ``model_type`` is unknown or the texts do not allow ``vocab_size``.
        """
        import sentencepiece

        if model_type not in ("bpe", "unigram"):
            raise ValueError(f"model_type must be bpe or unigram, got {model_type!r}")
        lines = [text for text in texts if text.strip()]
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
                # Transcripts are taken as they are given.
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
            raise ValueError(f"vocab_size must be {limit}, got {vocab_size} ({error})") from error
        tokenizer = cls(written.getvalue())
        tokenizer.save(out)
        return tokenizer

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.model` file.

        Raises:
            DataError: If it is missing or not a fitting model.
        """
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read tokenizer {path}: {error.strerror}") from error
        return cls(model)

    @classmethod
    def from_bytes(cls, model: bytes) -> Tokenizer:
        """The tokenizer that `to_bytes` gave."""
        return cls(model)

    def to_bytes(self) -> bytes:
        """Content of `tokenizer.model`."""
        return self._model

    def tokens_txt(self) -> str:
        """Content of `tokens.txt`: `symbol id` per line, as icefall and sherpa read it."""
        symbols = (self._processor.id_to_piece(index) for index in range(self.vocab_size))
        return "".join(f"{symbol} {index}\n" for index, symbol in enumerate(symbols))

    def save(self, out: Path) -> None:
        """Write `tokenizer.model` and `tokens.txt` into a folder, each complete or not at all."""
        out.mkdir(parents=True, exist_ok=True)
        contents = {"tokenizer.model": self._model, "tokens.txt": self.tokens_txt().encode()}
        for name, content in contents.items():
            with replacing(out / name) as partial:
                partial.write_bytes(content)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the three special ones included."""
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, never blank or start-of-sentence, whatever the text says."""
        return [int(token) for token in self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; blank and start-of-sentence are left out."""
        pieces = [int(token) for token in ids if token not in (self.BLANK, self.SOS_EOS)]
        return str(self._processor.decode(pieces))

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._model,)
