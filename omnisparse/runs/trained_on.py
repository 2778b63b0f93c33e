"""The training utterances of a run, so that changes of a corpus are detected and named.

``corpus.jsonl.gz`` of a run holds a line per training utterance: corpus, name, digest of its
transcript, digest of its samples (by the content of files, not by their names or folders).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omnisparse.data.batch import text_of
from omnisparse.data.identity import sound_rows
from omnisparse.durable import replacing
from omnisparse.errors import FormatError

if TYPE_CHECKING:
    from lhotse import CutSet

FILE = "corpus.jsonl.gz"
_DIGITS = 12
_NAMED = 3


class Utterance(NamedTuple):
    """One training utterance, by content."""

    corpus: int
    """Number of its corpus, in the order of the configuration."""
    name: str
    """Its name."""
    text: str
    """Digest of its transcript."""
    audio: str
    """Digest of its samples."""


def list_utterances(corpora: Sequence[CutSet]) -> list[Utterance]:
    """The utterances of corpora; files with known size and time are not read again."""
    found = []
    for number, cuts in enumerate(corpora):
        listed = list(cuts)
        for cut, row in zip(listed, sound_rows(listed), strict=True):
            sound = json.dumps(row, default=str)
            found.append(Utterance(number, cut.id, _digest(text_of(cut)), _digest(sound)))
    return found


def write_utterances(run: Path, utterances: Sequence[Utterance]) -> None:
    """Write the list of training utterances into ``run``."""
    with (
        replacing(run / FILE) as partial,
        gzip.open(partial, "wt", encoding="utf-8", compresslevel=4) as file,
    ):
        file.writelines(json.dumps(utterance) + "\n" for utterance in utterances)


def read_utterances(run: Path) -> list[Utterance] | None:
    """The training utterances of ``run``; None if it has no list.

    Raises:
        FormatError: If the list cannot be read.
    """
    path = run / FILE
    if not path.exists():
        return None
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [Utterance(*json.loads(line)) for line in file]
    except (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error) as error:
        raise FormatError(f"{path}: cannot be read ({error})") from error


def name_changes(before: Sequence[Utterance], now: Sequence[Utterance]) -> list[str]:
    """The changes between two lists, each kind with a count and the first names."""
    if list(before) == list(now):
        return []
    old = {(one.corpus, one.name): one for one in before}
    new = {(one.corpus, one.name): one for one in now}
    both = [(old[key], new[key]) for key in old if key in new]
    kinds = {
        "gone": [key[1] for key in old if key not in new],
        "new": [key[1] for key in new if key not in old],
        "with another transcript": [one.name for one, other in both if one.text != other.text],
        "with other audio": [one.name for one, other in both if one.audio != other.audio],
    }
    found = [
        f"{len(names):,} {kind} ({', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)})"
        for kind, names in kinds.items()
        if names
    ]
    return found or ["the same in another order"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
