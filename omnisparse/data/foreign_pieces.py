"""Word pieces of other toolkits, in the order of ids that our nets have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import DataError


class ReorderedPieces(NamedTuple):
    """A tokenizer of ours with the pieces of another one."""

    tokenizer: Tokenizer

    order: Sequence[int]
    """For each of our ids, the id there; for blank the number of pieces there, and for a sentence
    mark that is not there one more."""


def reordered(model: bytes, *, start_may_lack: bool = False) -> ReorderedPieces:
    """Move the special pieces of a sentencepiece model to where ours are, and add a blank.

    A text is cut into the same pieces: these depend on scores, not on ids. ``<s>`` takes the place
    of our sentence mark; neither is ever recognised.

    Args:
        model: A serialised sentencepiece model with ``<s>`` and ``<unk>``, whose net has one more
            symbol, the blank, behind the pieces.
        start_may_lack: Whether it may be without ``<s>``.

    Raises:
        DataError: If it is none, or has no ``<unk>`` or ``<s>``.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    theirs = sentencepiece_model_pb2.ModelProto()
    try:
        theirs.ParseFromString(model)
    except DecodeError as error:
        raise DataError("not a sentencepiece model") from error
    pieces = list(theirs.pieces)
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.Type
    unknown = [index for index, piece in enumerate(pieces) if piece.type == kind.UNKNOWN]
    start = theirs.trainer_spec.bos_id
    if start_may_lack and not 0 <= start < len(pieces):
        start = len(pieces) + 1
        if len(unknown) != 1:
            raise DataError("its word pieces have no <unk>, which our nets need")
    elif len(unknown) != 1 or not 0 <= start < len(pieces) or start in unknown:
        raise DataError("its word pieces have no <s> or no <unk>, of which our nets need both")
    rest = [index for index in range(len(pieces)) if index not in (start, unknown[0])]
    order = [len(pieces), start, unknown[0], *rest]
    ours = sentencepiece_model_pb2.ModelProto()
    ours.CopyFrom(theirs)
    del ours.pieces[:]
    ours.pieces.add(piece="<blk>", score=0.0, type=kind.CONTROL)
    ours.pieces.add(piece="<sos/eos>", score=0.0, type=kind.CONTROL)
    ours.pieces.add(piece="<unk>", score=0.0, type=kind.UNKNOWN)
    ours.pieces.extend(pieces[index] for index in rest)
    spec = ours.trainer_spec
    spec.vocab_size, spec.unk_id = len(order), Tokenizer.UNKNOWN
    spec.unk_piece = "<unk>"
    spec.bos_id = spec.eos_id = spec.pad_id = -1
    return ReorderedPieces(Tokenizer(ours.SerializeToString()), order)
