"""What is known of the files in shards, written beside them, so that nobody decodes them again.

The index of the split ``train`` is ``train.index.jsonl.gz`` beside its folder, not within it:
lhotse takes every file in a folder of shards for a field. It is only believed for archives of the
size that it names and for unchanged cuts, and every file is compared with its digest when it is
read.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omnisparse.data.formats.lines import parse_json, read_lines
from omnisparse.data.members import digest_of
from omnisparse.errors import DataError

_FORMAT = {"format": "omnisparse-shards", "version": 1}
_WORDS = ("sound", "silent")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFacts:
    """The files of one shard, in order; all lists are equally long."""

    tar: str
    """Name of the archive, without its folder."""
    bytes: int
    """Its size."""
    cuts: str
    """Digest of the manifest beside it."""
    ids: list[str]
    """Utterances."""
    offsets: list[int]
    """First byte of each file."""
    sizes: list[int]
    """Bytes of each."""
    digests: list[str]
    """Hash of the content of each."""
    suffix: str
    """Ending of their names."""
    rates: list[int]
    """Rate of each, in Hz."""
    frames: list[int]
    """Samples that decoding each gives; they have one channel."""
    heard: list[str]
    """`sound` or `silent`, of each."""


def index_path(folder: Path) -> Path:
    """Where the index of a folder of shards lies."""
    return folder.parent / f"{folder.name}.index.jsonl.gz"


def write_index(folder: Path, shards: Iterable[ShardFacts]) -> None:
    """Write the index of a folder of shards."""
    with gzip.open(index_path(folder), "wt", encoding="utf-8", compresslevel=5) as file:
        for record in ({**_FORMAT}, *map(asdict, shards)):
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def read_index(folder: Path) -> tuple[dict[str, ShardFacts], str]:
    """Facts of the shards of a folder that are as they were when the index was written.

    Returns:
        Facts by the name of the archive, and why some or all are not believed; empty if none.
    """
    path = index_path(folder)
    if not path.is_file():
        return {}, ""
    known: dict[str, ShardFacts] = {}
    try:
        lines = read_lines(path)
        header = parse_json(next(lines, (0, "{}"))[1])
        if header != _FORMAT:
            raise ValueError("of another format")
        for _, line in lines:
            facts = _facts_of(parse_json(line))
            known[facts.tar] = facts
    except (ValueError, DataError) as error:
        return {}, f"{path.name} is not believed ({error}): audio is decoded"
    fresh = {name: facts for name, facts in known.items() if _is_fresh(folder, facts)}
    changed = len(known) - len(fresh)
    note = f"{changed} of {len(known)} shards have changed since they were indexed: decoded anew"
    return fresh, note if changed else ""


def _facts_of(record: Mapping[str, Any]) -> ShardFacts:
    """Facts, checked.

    Raises:
        ValueError: If they are none.
    """
    names = [one.name for one in fields(ShardFacts)]
    if set(record) != set(names):
        raise ValueError("a line has other fields")
    facts = ShardFacts(**record)
    texts = (facts.ids, facts.digests, facts.heard)
    numbers = (facts.offsets, facts.sizes, facts.rates, facts.frames)
    lists = [one for one in (*texts, *numbers) if isinstance(one, list)]
    plain = all(isinstance(one, str) for one in (facts.tar, facts.cuts, facts.suffix))
    if len(lists) != 7 or len({len(one) for one in lists}) != 1 or not plain:
        raise ValueError("a line has lists of different lengths")
    if not all(type(n) is int and n >= 0 for one in numbers for n in one):
        raise ValueError("a line has a number that is none")
    if not all(isinstance(text, str) for one in texts for text in one):
        raise ValueError("a line has a text that is none")
    if not set(facts.heard) <= set(_WORDS) or any(len(one) != 40 for one in facts.digests):
        raise ValueError("a line has a word that is none of its words")
    return facts


def _is_fresh(folder: Path, facts: ShardFacts) -> bool:
    """Whether archive and manifest of a shard are as they were."""
    try:
        same = (folder / facts.tar).stat().st_size == facts.bytes
        return same and digest_of(cuts_beside(folder / facts.tar).read_bytes()) == facts.cuts
    except (OSError, ValueError):
        return False


def cuts_beside(tar: Path) -> Path:
    """The manifest of an archive: ``cuts.000001.jsonl.gz`` of ``recording.000001.tar``."""
    number = tar.name.removeprefix("recording").removesuffix(".tar")
    zipped = tar.with_name(f"cuts{number}.jsonl.gz")
    return zipped if zipped.exists() else tar.with_name(f"cuts{number}.jsonl")
