"""Kaldi data directories: tables of recordings, of their parts, of words and of speakers."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from omnisparse.data.formats.lines import listed, locate, read_table
from omnisparse.data.formats.pipes import UnreadablePipeError, read_pipe
from omnisparse.data.validation import Item, Listing, SkippedItem

# A place in an archive: `foo.ark:123`, with or without a range of frames.
_IN_ARCHIVE = re.compile(r":\d+(\[[^\]]*\])?$|\.ark$")
_FILE_END = -1.0
_ARCHIVE_ADVICE = (
    "a place in a Kaldi archive, which is not read; write single files with "
    "`wav-copy scp:wav.scp scp:new_wav.scp`"
)


def kaldi_folders(source: Path) -> dict[str, Path]:
    """Data directories by the names of their splits: one, or those of a folder of them."""
    if (source / "wav.scp").is_file():
        return {source.resolve().name: source}
    return {path.parent.name: path.parent for path in listed(source, "*/wav.scp")}


def list_kaldi(folder: Path, *, needs_text: bool) -> Listing:
    """Utterances of a data directory.

    What only one of its tables knows is left out and told, as Kaldi's own tools do.

    Args:
        folder: With `wav.scp` and `text`, and where there are `segments` and `utt2spk`.
        needs_text: Whether a directory without `text` is an error; else all of it is untranscribed.

    Raises:
        DataError: If a table cannot be read.
    """
    recordings, twice = read_table(folder / "wav.scp")
    listing = Listing()
    has_text = (folder / "text").is_file()
    if needs_text or has_text:
        texts, repeated = read_table(folder / "text")
        twice += repeated
    else:
        texts = {}
    has_segments = (folder / "segments").is_file()
    segments = {name: name for name in recordings}
    if has_segments:
        segments, repeated = read_table(folder / "segments")
        twice += repeated
    speakers = read_table(folder / "utt2spk")[0] if (folder / "utt2spk").is_file() else {}
    for name in dict.fromkeys(twice):
        detail = "it has several lines in one table; the first counts"
        listing.skipped.append(SkippedItem(name, "duplicate", detail))
    if has_text:
        _leave_out(listing, sorted(set(segments) - set(texts)), "text", "segments or wav.scp")
        _leave_out(listing, sorted(set(texts) - set(segments)), "segments or wav.scp", "text")
    for name in sorted(set(segments) & set(texts) if has_text else segments):
        try:
            row = segments[name] if has_segments else None
            item = _item(name, row, recordings, folder)
            words, speaker = texts.get(name), speakers.get(name)
            listing.items.append(replace(item, text=words, speaker=speaker))
        except UnreadablePipeError as error:
            listing.skipped.append(SkippedItem(name, "unsupported", str(error)))
        except ValueError as error:
            listing.skipped.append(SkippedItem(name, "malformed", str(error)))
        except KeyError as error:
            detail = f"no recording {error.args[0]} in wav.scp"
            listing.skipped.append(SkippedItem(name, "missing", detail))
    return listing


def _leave_out(listing: Listing, names: list[str], lacking: str, there: str) -> None:
    """Leave out and tell what one table has and another lacks."""
    if not names:
        return
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    listing.notes.append(f"{len(names):,} of {there} have no line in {lacking}, left out: {shown}")
    for name in names:
        listing.outside.append(SkippedItem(name, "outside", f"no line in {lacking}"))


def _item(name: str, row: str | None, recordings: dict[str, str], folder: Path) -> Item:
    """An utterance without its words, by its line in `segments`, if there are any.

    Raises:
        ValueError: If a table has no sound entry for it.
        KeyError: If there is no recording of it.
        UnreadablePipeError: If the recording is no file.
    """
    start, end, channel = 0.0, _FILE_END, None
    recording = name
    if row is not None:
        recording, start, end, channel = _segment(row)
    location = recordings[recording].strip()
    if location.endswith("|"):
        file, piped = read_pipe(location)
        if piped is not None and channel is not None and channel != piped:
            raise ValueError(f"channel {channel} of a pipe that gives channel {piped} alone")
        channel = piped if piped is not None else channel
    elif _IN_ARCHIVE.search(location) and not locate(location, folder).exists():
        raise UnreadablePipeError(f"{location}: {_ARCHIVE_ADVICE}")
    elif location == "-" or not location:
        raise ValueError(f"recording {recording} names no file")
    else:
        file = location
    return Item(
        id=name,
        path=locate(file, folder),
        text=None,
        offset=start,
        duration=None if end == _FILE_END else end - start,
        segment=row is not None,
        channels=None if channel is None else (channel,),
    )


def _segment(row: str) -> tuple[str, float, float, int | None]:
    """Recording, start and end in seconds (-1: the end of the file), channel."""
    fields = row.split()
    if len(fields) not in (3, 4):
        raise ValueError(f"segments: recording, start, end and channel expected, got {row[:60]!r}")
    try:
        start, end = float(fields[1]), float(fields[2])
    except ValueError as error:
        raise ValueError(f"segments: no times: {row[:60]!r}") from error
    if not (0 <= start < math.inf and (end == _FILE_END or start < end < math.inf)):
        raise ValueError(f"segment from {start} s to {end} s")
    channel = None
    if len(fields) == 4:
        # Kaldi's extract-segments takes the channel from 0.
        if not fields[3].isdecimal():
            raise ValueError(f"segments: channel {fields[3]!r}, a number from 0 expected")
        channel = int(fields[3])
    return fields[0], start, end, channel
