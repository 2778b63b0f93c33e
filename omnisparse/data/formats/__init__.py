"""What NeMo and lhotse manifests, Shar, Kaldi directories and LibriSpeech trees declare.

Each reader lists the utterances of every split without opening any audio. A line that cannot be
understood becomes a skipped item named `file:line`, because one bad line must not lose a corpus.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Literal

from omnisparse.data.formats.kaldi import kaldi_folders, list_kaldi
from omnisparse.data.formats.lhotse_cuts import list_cuts, list_pair
from omnisparse.data.formats.librispeech import has_transcripts, list_librispeech
from omnisparse.data.formats.lines import listed, parse_json, read_lines, split_name
from omnisparse.data.formats.nemo import audio_of, list_nemo
from omnisparse.data.formats.shar import list_shar, shar_folders
from omnisparse.data.validation import Listing
from omnisparse.errors import DataError

CorpusFormat = Literal["nemo", "lhotse", "kaldi", "librispeech", "shar"]

FORMATS: tuple[str, ...] = ("auto", "nemo", "lhotse", "kaldi", "librispeech", "shar")
"""Legal values of `prepare import --format`."""

# Lines looked at to learn what a manifest is: its first may be the bad one.
_LINES_ASKED = 20
# What an import and the embedded corpus say of themselves, and no manifests.
_OWN = {"skipped.jsonl", "import.json", "corpus.json"}


def manifest_format(path: Path) -> Literal["nemo", "lhotse"] | None:
    """Format of a manifest file by its first lines; None where it is neither.

    Raises:
        DataError: If it cannot be read.
    """
    for _, line in islice(read_lines(path), _LINES_ASKED):
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if audio_of(record) is not None:
            return "nemo"
        if "recording" in record or "tracks" in record:
            return "lhotse"
    return None


def detect_format(source: Path) -> CorpusFormat:
    """Format of a corpus, from the files it is made of.

    Raises:
        DataError: If ``source`` is missing, empty or looks like none of the formats.
    """
    if not source.exists():
        raise DataError(f"no such file or folder: {source}")
    found: CorpusFormat | None = None
    if source.is_file():
        if next(read_lines(source), None) is None:
            raise DataError(f"manifest {source} is empty")
        found = manifest_format(source)
    elif shar_folders(source):
        found = "shar"
    elif kaldi_folders(source):
        found = "kaldi"
    else:
        formats = (manifest_format(path) for path in _manifests(source))
        found = next((one for one in formats if one is not None), None)
        if found is None and _pairs(source):
            found = "lhotse"
        if found is None and has_transcripts(source):
            found = "librispeech"
    if found is None:
        raise DataError(
            f"{source} looks like none of nemo (JSON lines with audio_filepath), lhotse (cuts), "
            "shar (cuts.*.jsonl.gz with tar archives), kaldi (wav.scp) and librispeech "
            "(*.trans.txt)"
        )
    return found


def list_corpus(source: Path, corpus_format: CorpusFormat) -> dict[str, Listing]:
    """Declared utterances of every split of a corpus.

    Raises:
        DataError: If the files of that format are not there or cannot be read.
    """
    if corpus_format == "kaldi":
        alone = (source / "wav.scp").is_file()
        splits = {
            name: list_kaldi(folder, needs_text=alone)
            for name, folder in kaldi_folders(source).items()
        }
    elif corpus_format == "librispeech":
        splits = list_librispeech(source)
    elif corpus_format == "shar":
        splits = {name: list_shar(folder) for name, folder in shar_folders(source).items()}
    else:
        splits = _list_manifests(source, corpus_format)
    if not splits:
        raise DataError(f"{source}: nothing there to read as {corpus_format}")
    return splits


def _list_manifests(source: Path, corpus_format: CorpusFormat) -> dict[str, Listing]:
    splits: dict[str, Listing] = {}
    others = []
    files = [source]
    if source.is_dir():
        found = {path: manifest_format(path) for path in _manifests(source)}
        files = [path for path, one in found.items() if one == corpus_format]
        others = [path for path in found if path not in files]
        if not files and corpus_format == "lhotse":
            for recordings, supervisions in _pairs(source):
                name = re.sub(r"[-_.]?recordings[-_.]?", "-", split_name(recordings)).strip("-")
                _add(splits, name or "all", list_pair(recordings, supervisions), recordings)
            return splits
    for path in files:
        listing = list_nemo(path) if corpus_format == "nemo" else list_cuts(path)
        name = split_name(path)
        if corpus_format == "lhotse":
            name = re.sub(r"^cuts[-_.]|[-_.]cuts$", "", name)
        _add(splits, name, listing, path)
    if others and splits:
        names = ", ".join(path.name for path in others)
        next(iter(splits.values())).notes.append(f"not {corpus_format}, and passed over: {names}")
    return splits


def _manifests(folder: Path) -> list[Path]:
    suffixes = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
    return [
        path
        for path in listed(folder, "*")
        if path.name.endswith(suffixes) and path.name not in _OWN
    ]


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Manifests of recordings with those of their supervisions."""
    pairs = []
    for path in listed(folder, "*recordings*.jsonl*"):
        partner = path.with_name(path.name.replace("recordings", "supervisions"))
        if partner.is_file():
            pairs.append((path, partner))
    return pairs


def _add(splits: dict[str, Listing], name: str, listing: Listing, source: Path) -> None:
    """Add a split.

    Raises:
        DataError: If there is one of its name: `train.jsonl` and `train.jsonl.gz` both are `train`.
    """
    if name in splits:
        raise DataError(f"{source}: a second manifest of the split {name}; remove or rename one")
    splits[name] = listing
