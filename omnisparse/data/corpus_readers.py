"""What NeMo manifests, lhotse manifests, Kaldi data directories and LibriSpeech trees declare.

Each reader lists the utterances of every split without opening any audio. A line that cannot be
understood becomes a skipped item named `file:line`, because one bad line must not lose a corpus.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from omnisparse.data.validation import Item, Listing, SkippedItem
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse.cut import Cut

CorpusFormat = Literal["nemo", "lhotse", "kaldi", "librispeech"]

# The one pipe that is common in Kaldi directories and names a file that can be read directly.
_FLAC_PIPE = re.compile(r"^\s*flac\s+(?:-\S+\s+)*(\S+\.flac)\s*\|\s*$")
_MOST_SECONDS = 1e9
# What lhotse raises where a record lacks what it expects.
_NOT_A_CUT = (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError)
_AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered non-blank lines of a text file, gzipped or not, from 1.

    Raises:
        DataError: If the file cannot be read as UTF-8 text.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def require_content(path: Path) -> None:
    """Refuse a manifest without a line.

    Raises:
        DataError: If ``path`` is empty or cannot be read.
    """
    if next(read_lines(path), None) is None:
        raise DataError(f"manifest {path} is empty")


def manifest_format(path: Path) -> Literal["nemo", "lhotse"] | None:
    """Format of a manifest file by its first line; None where it is neither, or not JSON lines."""
    for _, line in read_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if isinstance(record, dict) and "audio_filepath" in record:
            return "nemo"
        if isinstance(record, dict) and ("recording" in record or "tracks" in record):
            return "lhotse"
        return None
    return None


def detect_format(source: Path) -> CorpusFormat:
    """Format of a corpus, from the files it is made of.

    Raises:
        DataError: If ``source`` is missing, empty or looks like none of the four formats.
    """
    if not source.exists():
        raise DataError(f"no such file or folder: {source}")
    found: CorpusFormat | None = None
    if source.is_file():
        require_content(source)
        found = manifest_format(source)
    elif (source / "wav.scp").is_file() or any(source.glob("*/wav.scp")):
        found = "kaldi"
    elif next(source.rglob("*.trans.txt"), None) is not None:
        found = "librispeech"
    else:
        formats = (manifest_format(path) for path in _manifests(source))
        found = next((one for one in formats if one is not None), None)
        if found is None and any(source.glob("*supervisions*.jsonl*")):
            found = "lhotse"
    if found is None:
        raise DataError(
            f"{source} looks like none of nemo (JSON lines with audio_filepath), lhotse (cuts), "
            "kaldi (wav.scp) and librispeech (*.trans.txt)"
        )
    return found


def list_corpus(source: Path, corpus_format: CorpusFormat) -> dict[str, Listing]:
    """Declared utterances of every split of a corpus.

    Raises:
        DataError: If the files of that format are not there or cannot be read.
    """
    readers = {
        "nemo": read_nemo,
        "lhotse": read_lhotse,
        "kaldi": read_kaldi,
        "librispeech": read_librispeech,
    }
    splits = readers[corpus_format](source)
    if not splits:
        raise DataError(f"{source}: nothing there to read as {corpus_format}")
    return splits


def _manifests(folder: Path) -> list[Path]:
    suffixes = (".jsonl", ".jsonl.gz", ".json")
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffixes))


def split_name(path: Path) -> str:
    """Name of the split that a manifest file holds: `a/train.jsonl.gz` is `train`."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def read_nemo(source: Path) -> dict[str, Listing]:
    """NeMo manifests: one file, or a folder of files named by their splits."""
    files = [source]
    if source.is_dir():
        files = [path for path in _manifests(source) if manifest_format(path) == "nemo"]
    splits: dict[str, Listing] = {}
    for path in files:
        listing = Listing()
        for number, line in read_lines(path):
            try:
                listing.items.append(parse_nemo_line(line, path.parent))
            except ValueError as error:
                name = f"{path.name}:{number}"
                listing.skipped.append(SkippedItem(name, "malformed", str(error)))
        _add(splits, split_name(path), listing, path)
    return splits


def _add(splits: dict[str, Listing], name: str, listing: Listing, source: Path) -> None:
    """Add a split.

    Raises:
        DataError: If there is one of its name: `train.jsonl` and `train.jsonl.gz` both are `train`.
    """
    if name in splits:
        raise DataError(f"{source}: a second manifest of the split {name}; remove or rename one")
    splits[name] = listing


def parse_nemo_line(line: str, folder: Path) -> Item:
    """One line of a NeMo manifest.

    Args:
        line: A JSON object with `audio_filepath` and `text`, and where known `duration`, `offset`
            (s), `speaker` and `id`.
        folder: What a relative `audio_filepath` is relative to.

    Raises:
        ValueError: If the line is not such an object.
    """
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    audio = record.get("audio_filepath")
    if not isinstance(audio, str) or not audio:
        raise ValueError("no audio_filepath")
    text = record.get("text", "")
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {text!r}")
    duration = _seconds(record, "duration")
    if duration == 0.0:
        raise ValueError("duration must be above 0")
    offset = _seconds(record, "offset")
    default_id = audio.rsplit(".", 1)[0] + ("" if offset is None else f"@{offset:.3f}")
    name, speaker = record.get("id"), record.get("speaker")
    return Item(
        id=default_id if name is None else str(name),
        path=folder / audio,
        text=text,
        offset=offset or 0.0,
        duration=duration,
        speaker=None if speaker is None else str(speaker),
        segment=offset is not None,
    )


def _seconds(record: dict[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value < _MOST_SECONDS:
        raise ValueError(f"{name} must be a number of seconds from 0, got {str(value)[:40]!r}")
    return float(value)


def read_lhotse(source: Path) -> dict[str, Listing]:
    """Lhotse cuts: one file, a folder of files, or pairs of recordings and supervisions."""
    from lhotse import CutSet, load_manifest

    splits: dict[str, Listing] = {}
    files = [source]
    if source.is_dir():
        files = [path for path in _manifests(source) if manifest_format(path) == "lhotse"]
        for path in sorted(source.glob("*recordings*.jsonl*")):
            partner = path.with_name(path.name.replace("recordings", "supervisions"))
            if partner.is_file() and not files:
                pair = CutSet.from_manifests(load_manifest(path), load_manifest(partner))
                name = re.sub(r"[-_.]?recordings[-_.]?", "-", split_name(path)).strip("-")
                _add(splits, name or "all", _list_cuts(pair, source), path)
    for path in files:
        cuts = read_lhotse_cuts(path)
        name = re.sub(r"^cuts[-_.]|[-_.]cuts$", "", split_name(path))
        _add(splits, name, _list_cuts(cuts, path.parent), path)
    return splits


def read_lhotse_cuts(path: Path, *, only_files: bool = False) -> list[Cut]:
    """Cuts of a lhotse manifest file; relative paths of audio become absolute, from its folder.

    Args:
        path: The manifest.
        only_files: Refuse cuts with any audio that is not a file, wherever in the cut it is named
            (in a track, in a reverberation): lhotse runs a `command` and fetches a `url`.

    Raises:
        DataError: If a line is not a cut or refused, naming it.
    """
    from lhotse.serialization import deserialize_item

    cuts = []
    folder = path.parent.absolute()
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
            for source in _audio_sources(record):
                if source.get("type") == "file":
                    source["source"] = str(folder / source["source"])
                elif only_files:
                    raise DataError(
                        f"{path}:{number}: cut {record.get('id')}: audio of the type "
                        f"{source.get('type')!r}, only 'file' is read"
                    )
            cut = deserialize_item(record)
            # Any attribute of a cut will do: other lhotse objects parse as well.
            _ = cut.supervisions
        except _NOT_A_CUT as error:
            raise DataError(f"{path}:{number}: not a lhotse cut ({error})") from error
        cuts.append(cut)
    return cuts


def _audio_sources(record: Any) -> Iterator[dict[str, Any]]:
    """Every audio source that a lhotse record names, at any depth."""
    if isinstance(record, list):
        for value in record:
            yield from _audio_sources(value)
    elif isinstance(record, dict):
        for key, value in record.items():
            if key == "sources" and isinstance(value, list):
                yield from (source for source in value if isinstance(source, dict))
            yield from _audio_sources(value)


def _list_cuts(cuts: Any, folder: Path) -> Listing:
    listing = Listing()
    for whole in cuts:
        supervisions = whole.supervisions
        stretches = whole.trim_to_supervisions(keep_overlapping=False) if supervisions else []
        if not supervisions:
            listing.skipped.append(SkippedItem(whole.id, "untranscribed", "no supervision"))
        for cut in stretches:
            supervision = cut.supervisions[0]
            name = whole.id if len(supervisions) == 1 else supervision.id
            recording: Any = getattr(cut, "recording", None)
            plain = (
                recording is not None
                and len(recording.sources) == 1
                and recording.sources[0].type == "file"
                and not recording.transforms
            )
            if not plain:
                detail = "only cuts of one untransformed audio file can be imported"
                listing.skipped.append(SkippedItem(name, "unsupported", detail))
                continue
            listing.items.append(
                Item(
                    id=name,
                    path=folder / cast(str, recording.sources[0].source),
                    text=supervision.text or "",
                    offset=cut.start,
                    duration=cut.duration,
                    speaker=supervision.speaker,
                    segment=cut.start > 0 or cut.duration < recording.duration,
                )
            )
    return listing


def read_kaldi(source: Path) -> dict[str, Listing]:
    """Kaldi data directories: one, or a folder of them named by their splits."""
    if (source / "wav.scp").is_file():
        return {source.resolve().name: _read_kaldi_directory(source)}
    folders = sorted(path.parent for path in source.glob("*/wav.scp"))
    return {folder.name: _read_kaldi_directory(folder) for folder in folders}


def _read_kaldi_directory(folder: Path) -> Listing:
    recordings = _read_table(folder / "wav.scp", required=True)
    texts = _read_table(folder / "text", required=True)
    speakers = _read_table(folder / "utt2spk")
    has_segments = (folder / "segments").is_file()
    segments = _read_table(folder / "segments") if has_segments else {r: r for r in recordings}
    listing = Listing()
    for name in sorted(set(segments) | set(texts)):
        fields = segments.get(name, "").split()
        try:
            start, end = (float(fields[1]), float(fields[2])) if has_segments else (0.0, math.inf)
            location = recordings[fields[0]]
        except (IndexError, ValueError, KeyError):
            detail = "no readable entry in wav.scp or segments"
            listing.skipped.append(SkippedItem(name, "missing", detail))
            continue
        pipe = _FLAC_PIPE.match(location)
        if location.endswith("|") and pipe is None:
            # A manifest is data: a command found in it is never run.
            listing.skipped.append(SkippedItem(name, "unsupported", f"a command: {location}"))
            continue
        if not 0 <= start < end or (has_segments and end == math.inf):  # so is NaN
            detail = f"segment from {start} s to {end} s"
            listing.skipped.append(SkippedItem(name, "malformed", detail))
            continue
        path = Path(location if pipe is None else pipe.group(1))
        listing.items.append(
            Item(
                id=name,
                # Kaldi means the working directory; moved corpora mean their own folder.
                path=folder / path if (folder / path).exists() else path.absolute(),
                text=texts.get(name, ""),
                offset=start,
                duration=end - start if has_segments else None,
                speaker=speakers.get(name),
                segment=has_segments,
            )
        )
    return listing


def _read_table(path: Path, required: bool = False) -> dict[str, str]:
    if not path.is_file():
        if required:
            raise DataError(f"no such file: {path}")
        return {}
    rows = (line.split(maxsplit=1) for _, line in read_lines(path))
    return {row[0]: row[1] if len(row) > 1 else "" for row in rows}


def read_librispeech(source: Path) -> dict[str, Listing]:
    """A LibriSpeech tree, `subset/speaker/chapter/*.flac`, `*.trans.txt`; subsets are splits."""
    splits: dict[str, Listing] = {}
    for transcripts in sorted(source.rglob("*.trans.txt")):
        chapter = transcripts.parent
        speaker = chapter.parent
        subset = speaker.parent.resolve().name
        listing = splits.setdefault(subset, Listing())
        present = {path.stem: path for path in chapter.iterdir() if path.suffix in _AUDIO_SUFFIXES}
        texts = _read_table(transcripts)
        for name in sorted(set(texts) | set(present)):
            path = present.get(name, chapter / f"{name}.flac")
            listing.items.append(
                Item(id=name, path=path, text=texts.get(name, ""), speaker=speaker.name)
            )
    return splits
