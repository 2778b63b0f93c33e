"""Lhotse Shar: cuts, and their audio in tar archives beside them, in numbered shards.

Each utterance is read from its place in its archive (`data/members.py`). As of any manifest,
nothing that it names is run or fetched: of a cut in a shard, only the audio in the archive is
heard, wherever the cut says that its audio lies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnisparse.data.content import ContentCache
from omnisparse.data.formats.lhotse_cuts import NOT_A_CUT, list_record, why_no_cut
from omnisparse.data.formats.lines import listed, parse_json, read_lines
from omnisparse.data.formats.shard_index import ShardFacts, cuts_beside, read_index
from omnisparse.data.members import MAX_BYTES, Member, digest_of, list_members
from omnisparse.data.validation import Item, Judged, Listing, SkippedItem
from omnisparse.errors import DataError

_MAX_META_BYTES = 1 << 20
# What lhotse puts in place of the audio of a cut that has none.
_NO_DATA = ".nodata"

_Audio = tuple[str, Member, dict[str, Any], Judged | None] | None
"""Utterance, place, recording and what is known of its file, which is all of the recording; None
where the shard has no audio for the utterance."""


def shar_folders(source: Path) -> dict[str, Path]:
    """Folders of shards by split: ``source`` itself, or those that it holds."""
    if _is_shar(source):
        return {source.name: source}
    return {path.name: path for path in listed(source, "*") if path.is_dir() and _is_shar(path)}


def _is_shar(folder: Path) -> bool:
    return any(listed(folder, "cuts.*jsonl*")) and any(listed(folder, "*.tar"))


def list_shar(folder: Path) -> Listing:
    """Utterances of a folder of shards.

    Raises:
        DataError: If a shard is damaged, or audio and cuts do not fit.
    """
    listing = Listing()
    folder = folder.absolute()
    tars = listed(folder, "recording.*tar")
    if not tars:
        held = sorted({path.name.split(".")[0] for path in listed(folder, "*.tar")})
        raise DataError(
            f"{folder}: shards without audio (they hold {', '.join(held)}); "
            "legal: shards with recording.*.tar"
        )
    lone = sorted({*listed(folder, "cuts.*jsonl*")} - {cuts_beside(tar) for tar in tars})
    if lone:
        raise DataError(f"{folder}: {lone[0].name} has no audio beside it")
    known, note = read_index(folder)
    if note:
        listing.notes.append(note)
    cache = ContentCache()
    for tar in tars:
        facts = known.get(tar.name)
        audio = _scanned(tar, cache) if facts is None else _indexed(tar, facts)
        _list_shard(tar, audio, folder, listing)
    return listing


def _list_shard(tar: Path, audio: Iterator[_Audio], folder: Path, listing: Listing) -> None:
    manifest = cuts_beside(tar)
    if not manifest.is_file():
        raise DataError(f"{tar}: no {manifest.name} beside it")
    for number, line in read_lines(manifest):
        name = f"{manifest.name}:{number}"
        try:
            found = next(audio)
        except StopIteration:
            raise DataError(f"{tar}: {manifest.name} lists more utterances than it holds") from None
        try:
            record = parse_json(line)
            identity = record.get("id")
            if found is None:
                listing.skipped.append(
                    SkippedItem(str(identity), "missing", f"its shard has no audio: {tar}")
                )
                continue
            utterance, member, meta, judged = found
            if identity != utterance:
                raise DataError(
                    f"{tar}: the cut {str(identity)[:80]!r} is beside the audio of "
                    f"{utterance[:80]!r}; cuts and audio are of different shards"
                )
            item = None if judged is None else _plain_item(record, member, judged)
            if item is not None:
                listing.items.append(item)
                continue
            record["recording"] = _recording(member, meta)
            first = len(listing.items)
            list_record(record, folder, listing, name)
        except NOT_A_CUT as error:
            listing.skipped.append(SkippedItem(name, "malformed", why_no_cut(error)))
            continue
        if judged is not None:
            listing.items[first:] = [
                item if item.segment or item.composed is not None else replace(item, judged=judged)
                for item in listing.items[first:]
            ]
    if next(audio, "none") != "none":
        raise DataError(f"{tar}: it holds more audio than {manifest.name} lists")


def _plain_item(record: dict[str, Any], member: Member, judged: Judged) -> Item | None:
    """What `list_record` makes of a cut that is all of its audio, spoken by one; None of others.

    A large corpus consists of nothing else, and is read several times as fast.
    """
    duration = judged.frames / judged.sampling_rate
    spoken = record.get("supervisions")
    if record.get("type") != "MonoCut" or not isinstance(spoken, list) or len(spoken) != 1:
        return None
    (one,) = spoken
    if not isinstance(one, dict):
        return None
    text, speaker = one.get("text"), one.get("speaker")
    places = (record.get("start"), record.get("channel"), one.get("start"), one.get("channel"))
    lengths = (record.get("duration"), one.get("duration"))
    texts = (text, speaker, record["id"])
    if places != (0, 0, 0, 0) or lengths != (duration, duration):
        return None
    if not all(isinstance(value, str) for value in texts):
        return None
    return Item(
        record["id"], Path(str(member)), text, duration=duration, speaker=speaker,
        channels=(0,), judged=judged,
    )  # fmt: skip


def _recording(member: Member, meta: dict[str, Any]) -> dict[str, Any]:
    """A recording whose only source is a file of an archive."""
    (source,) = meta["sources"]
    source = {"type": "file", "channels": list(source["channels"]), "source": str(member)}
    return {**meta, "sources": [source], "transforms": None}


def _indexed(tar: Path, facts: ShardFacts) -> Iterator[_Audio]:
    """Audio of a shard as its index has it."""
    columns = (facts.ids, facts.offsets, facts.sizes, facts.digests)
    more = (facts.rates, facts.frames, facts.heard)
    archive = str(tar)
    for name, offset, size, digest, rate, frames, heard in zip(*columns, *more, strict=True):
        if rate < 1:
            raise DataError(f"{tar}: its index says {rate} Hz of {name[:80]}")
        member = Member(archive, offset, size, digest, facts.suffix)
        meta = {"id": name, "sampling_rate": rate, "num_samples": frames}
        meta |= {"duration": frames / rate, "sources": [{"channels": [0]}]}
        yield name, member, meta, Judged(rate, 1, frames, heard)


def _scanned(tar: Path, cache: ContentCache) -> Iterator[_Audio]:
    """Audio of a shard of which nothing is known yet; what is found is kept."""
    digest = cache.digests([str(tar)]).get(str(tar))
    if digest is None:
        raise DataError(f"cannot read {tar}")
    # Another key than the audio of files has: this is about an archive.
    key = f"tar:{digest}"
    rows = cache.documents([key]).get(key, {}).get("files")
    if rows is None:
        try:
            rows = _scan(tar)
        except OSError as error:
            raise DataError(f"cannot read {tar}: {error.strerror or error}") from error
        except ValueError as error:
            raise DataError(f"cannot read {tar}: {error}") from error
        cache.keep({}, {key: {"files": rows}})
    for row in rows:
        if row is None:
            yield None
            continue
        name, offset, size, content, suffix, meta = row
        member = Member(str(tar), offset, size, content, suffix)
        if not isinstance(meta, dict):
            raise DataError(f"{tar}: what it says of {name[:80]} is no recording")
        yield name, member, meta, None


def _scan(tar: Path) -> list[Any]:
    """Name, offset, size, digest, ending and recording of each file of an archive, or None.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no archive of audio files, each with its recording behind it.
    """
    members = list_members(tar)
    if len(members) % 2:
        raise ValueError("a file of audio without its recording behind it")
    rows: list[Any] = []
    with tar.open("rb") as file:
        for (data, offset, size), (meta, place, length) in zip(
            members[::2], members[1::2], strict=True
        ):
            stem, suffix = os.path.splitext(data)
            if suffix == _NO_DATA:
                rows.append(None)
                continue
            if os.path.splitext(meta) != (stem, ".json"):
                raise ValueError(f"{meta[:80]} is not the recording of {data[:80]}")
            if length > _MAX_META_BYTES or size > MAX_BYTES:
                raise ValueError(f"{data[:80]} is too large")
            file.seek(offset)
            content = digest_of(file.read(size))
            file.seek(place)
            try:
                recording = json.loads(file.read(length))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{meta[:80]} is not JSON") from error
            rows.append([stem, offset, size, content, suffix, recording])
    return rows
