"""LibriSpeech trees: `subset/speaker/chapter/*.flac` with a `*.trans.txt`; subsets are splits."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from omnisparse.data.formats.lines import AUDIO_SUFFIXES, is_visible, read_table
from omnisparse.data.validation import Item, Listing, SkippedItem

TRANSCRIPTS = "*.trans.txt"


def has_transcripts(source: Path) -> bool:
    """Whether a folder holds a chapter of a LibriSpeech tree, at any depth."""
    return any(is_visible(path.relative_to(source)) for path in source.rglob(TRANSCRIPTS))


def list_librispeech(source: Path) -> dict[str, Listing]:
    """Utterances of every subset of a tree, or of a part of one.

    A chapter without transcripts is untranscribed; what is hidden is passed over.
    """
    source = source.resolve()
    chapters: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(source.rglob("*")):
        is_transcript = path.name.endswith(TRANSCRIPTS[1:])
        if (is_transcript or path.suffix.lower() in AUDIO_SUFFIXES) and is_visible(
            path.relative_to(source)
        ):
            chapters[path.parent].append(path)
    splits: dict[str, Listing] = {}
    for chapter, files in chapters.items():
        listing = splits.setdefault(chapter.parent.parent.name, Listing())
        _list_chapter(chapter, files, listing)
    return splits


def _list_chapter(chapter: Path, files: list[Path], listing: Listing) -> None:
    texts: dict[str, str] = {}
    present: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if not path.name.endswith(TRANSCRIPTS[1:]):
            present[path.stem].append(path)
            continue
        table, repeated = read_table(path)
        for name in [*repeated, *(set(table) & set(texts))]:
            detail = f"it has several transcripts in {chapter}; the first counts"
            listing.skipped.append(SkippedItem(name, "duplicate", detail))
        texts = table | texts
    for name in sorted(set(texts) | set(present)):
        paths = sorted(present[name], key=lambda path: AUDIO_SUFFIXES.index(path.suffix.lower()))
        for path in paths[1:]:  # one transcript, and no sign which of the files it is of
            detail = f"{paths[0].name} has its transcript: {path}"
            listing.skipped.append(SkippedItem(path.name, "duplicate", detail))
        listing.items.append(
            Item(
                id=name,
                path=paths[0] if paths else chapter / f"{name}.flac",
                text=texts.get(name),
                speaker=chapter.parent.name,
            )
        )
