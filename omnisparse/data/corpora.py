"""Corpora as lhotse cuts: manifests are read, foreign corpora checked and imported."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnisparse.data.atomic_folder import atomic_folder
from omnisparse.data.audio import recordings_of
from omnisparse.data.corpus_readers import (
    CorpusFormat,
    detect_format,
    list_corpus,
    manifest_format,
    parse_nemo_line,
    read_lhotse_cuts,
    read_lines,
    require_content,
)
from omnisparse.data.splitting import parse_shares, require_one_split, split_cuts
from omnisparse.data.validation import (
    SAMPLING_RATE,
    Hertz,
    Item,
    Progress,
    Seconds,
    SkippedItem,
    check_items,
    make_cut,
    require_mostly_good,
    write_skipped,
)
from omnisparse.durable import replacing
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

__all__ = [
    "Hertz",
    "Seconds",
    "SkippedItem",
    "import_corpus",
    "load_manifest",
    "manifest_name",
    "perturb_speed",
    "resample",
    "split_statistics",
    "write_nemo_manifest",
]

# Headers read to learn the rate of a manifest's audio.
_FILES_ASKED = 5

FORMATS: tuple[str, ...] = ("auto", "nemo", "lhotse", "kaldi", "librispeech")


def load_manifest(path: Path, *, sampling_rate: Hertz | None = None) -> CutSet:
    """Read a manifest as cuts, without reading any audio.

    Args:
        path: NeMo JSON lines or lhotse cuts, gzipped or not; told apart by content. Relative audio
            paths are relative to the folder of the manifest.
        sampling_rate: Rate of the audio that a NeMo manifest names, in Hz; None for the rate that
            the headers of a few of its files say.

    Returns:
        Cuts with one supervision each, in the order of the file.

    Raises:
        DataError: If the manifest or audio it names is missing, or a line is not understood;
            names the file and line.
    """
    if not path.is_file():
        kind = "a folder, not a manifest file" if path.is_dir() else "no such file"
        raise DataError(f"manifest {path}: {kind}")
    require_content(path)
    found = manifest_format(path)
    if found is None:
        raise DataError(
            f"manifest {path}: the first line is neither a NeMo item (a JSON object with "
            "audio_filepath) nor a lhotse cut"
        )
    cuts = _load_nemo(path, sampling_rate) if found == "nemo" else _load_lhotse(path)
    _require_unique(cuts, path)
    _require_files(cuts, path)
    from lhotse import CutSet

    return CutSet.from_cuts(cuts)


def manifest_name(path: Path) -> str:
    """What results call a manifest: ``books-test`` for ``data/books/test.jsonl.gz``."""
    path = path.absolute()
    return f"{path.parent.name}-{path.name.split('.')[0]}"


def _load_nemo(path: Path, sampling_rate: Hertz | None) -> list[Cut]:
    items = []
    folder = path.parent.absolute()
    for number, line in read_lines(path):
        try:
            item = parse_nemo_line(line, folder)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        if item.duration is None:
            raise DataError(f"{path}:{number}: no duration (`omnisparse prepare import` finds it)")
        items.append(item)
    rate = _usual_rate(items) if sampling_rate is None else sampling_rate
    return [_declared_cut(item, rate) for item in items]


def _usual_rate(items: Sequence[Item]) -> Hertz:
    """Rate of most of a few files, spread over the manifest; 16 kHz where none can be read."""
    import soundfile

    rates: Counter[Hertz] = Counter()
    for item in items[:: max(1, len(items) // _FILES_ASKED)][:_FILES_ASKED]:
        try:
            rates[soundfile.info(str(item.path)).samplerate] += 1
        except (OSError, RuntimeError, ValueError, TypeError):
            continue  # it is named when it is read, or as missing
    return rates.most_common(1)[0][0] if rates else SAMPLING_RATE


def _declared_cut(item: Item, sampling_rate: Hertz) -> Cut:
    num_samples = round((item.duration or 0.0) * sampling_rate)
    recording_samples = round(item.offset * sampling_rate) + num_samples
    if item.segment:
        # lhotse reads all of a recording that is as long as the cut, and then refuses a file that
        # is longer; of any other it reads the segment only.
        recording_samples = max(recording_samples, num_samples + sampling_rate)
    return make_cut(
        item,
        num_samples=num_samples,
        recording_samples=recording_samples,
        sampling_rate=sampling_rate,
    )


def _load_lhotse(path: Path) -> list[Cut]:
    # A manifest is data, and may be a stranger's: nothing that it names is run or fetched.
    cuts = read_lhotse_cuts(path, only_files=True)
    for cut in cuts:
        if len(cut.supervisions) != 1:
            raise DataError(f"{path}: cut {cut.id} has {len(cut.supervisions)} supervisions, not 1")
        if not _sources(cut):
            raise DataError(f"{path}: cut {cut.id} names no audio")
    return cuts


def _sources(cut: Cut) -> list[Any]:
    return [source for recording in recordings_of(cut) for source in recording.sources]


def _require_unique(cuts: list[Cut], path: Path) -> None:
    seen: set[str] = set()
    for cut in cuts:
        if cut.id in seen:
            raise DataError(f"manifest {path}: two utterances are named {cut.id}")
        seen.add(cut.id)


def _require_files(cuts: list[Cut], path: Path) -> None:
    missing = [
        source.source
        for cut in cuts
        for source in _sources(cut)
        if not os.path.exists(source.source)
    ]
    if missing:
        raise DataError(f"manifest {path}: {len(missing)} audio files are missing: {missing[0]}")


def import_corpus(
    source: Path,
    out: Path,
    *,
    corpus_format: Literal["auto", "nemo", "lhotse", "kaldi", "librispeech"] = "auto",
    sampling_rate: Hertz = SAMPLING_RATE,
    num_jobs: int = 2,
    progress: Progress | None = None,
    split: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Check every recording of a corpus and write the good ones as lhotse cuts.

    Args:
        source: A manifest file or the folder of a corpus.
        out: Folder for `<split>.jsonl.gz` and `skipped.jsonl`. Splits keep their names.
        corpus_format: How to read ``source``; "auto" looks at its files.
        sampling_rate: The only rate accepted, in Hz.
        num_jobs: Threads that decode audio.
        progress: Told (utterances done, utterances in all) of each split.
        split: Divide a corpus without splits, as `90/5/5`: train, dev and test by duration, each
            speaker on one side. None keeps the splits of the corpus.
        seed: Decides which speakers go where.

    Returns:
        `{"splits": {name: {"utterances", "hours", "speakers"}}, "skipped": count,
        "reasons": {reason: count}}`, and with ``split`` also `"split_by"` (speaker, recording or
        utterance) and `"notes"` (why it is not by speaker).

    Raises:
        ValueError: If ``corpus_format`` is unknown or ``split`` is not understood.
        DataError: If nothing can be read, more than 5 % of the utterances are bad, or a corpus
            that is to be divided has splits. Nothing is written then.
    """
    shares = None if split is None else parse_shares(split)
    if corpus_format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {corpus_format!r}")
    if not source.exists():
        raise DataError(f"no such file or folder: {source}")
    source = source.absolute()
    known: CorpusFormat = detect_format(source) if corpus_format == "auto" else corpus_format
    kept: dict[str, list[Cut]] = {}
    skipped: list[SkippedItem] = []
    listings = list_corpus(source, known)
    if shares is not None:
        require_one_split(list(listings), str(source))
    for name, listing in listings.items():
        cuts, bad = check_items(
            listing.items, sampling_rate=sampling_rate, num_jobs=num_jobs, progress=progress
        )
        kept[name] = cuts
        skipped.extend(replace(item, split=name) for item in (*listing.skipped, *bad))
    require_mostly_good(skipped, len(skipped) + sum(map(len, kept.values())), str(source))
    reasons: dict[str, int] = {}
    for item in skipped:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    about: dict[str, Any] = {}
    if shares is not None:
        divided = split_cuts([cut for cuts in kept.values() for cut in cuts], shares, seed=seed)
        kept, about = divided.cuts, {"split_by": divided.by, "notes": list(divided.notes)}
    try:
        with atomic_folder(out) as folder:
            for name, cuts in kept.items():
                _write_cuts(cuts, folder / f"{name}.jsonl.gz")
            write_skipped(skipped, folder / "skipped.jsonl")
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}") from error
    splits = {name: split_statistics(cuts) for name, cuts in kept.items()}
    return {"splits": splits, "skipped": len(skipped), "reasons": reasons, **about}


def _write_cuts(cuts: list[Cut], path: Path) -> None:
    from lhotse import CutSet

    CutSet.from_cuts(cuts).to_file(path)


def split_statistics(cuts: Iterable[Cut]) -> dict[str, Any]:
    """Size of a split.

    Returns:
        `{"utterances": count, "hours": of audio, "speakers": count of named ones}`.
    """
    utterances, seconds = 0, 0.0
    speakers: set[str] = set()
    for cut in cuts:
        utterances += 1
        seconds += cut.duration
        speakers.update(one.speaker for one in cut.supervisions if one.speaker)
    return {"utterances": utterances, "hours": seconds / 3600, "speakers": len(speakers)}


def write_nemo_manifest(cuts: Iterable[Cut], path: Path) -> None:
    """Write cuts of single files as NeMo JSON lines, with audio paths relative where possible.

    Raises:
        DataError: If a cut is not a stretch of one untransformed audio file.
    """
    folder = path.parent.absolute()
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for cut in cuts:
            file.write(json.dumps(_nemo_record(cut, folder), ensure_ascii=False) + "\n")


def _nemo_record(cut: Cut, folder: Path) -> dict[str, Any]:
    sources = _sources(cut)
    recording = getattr(cut, "recording", None)
    if len(sources) != 1 or recording is None or recording.transforms:
        raise DataError(f"{cut.id} is not one untransformed audio file; NeMo cannot describe it")
    audio = Path(sources[0].source)
    if audio.is_relative_to(folder):
        audio = audio.relative_to(folder)
    supervision = cut.supervisions[0]
    record: dict[str, Any] = {"id": cut.id, "audio_filepath": str(audio)}
    if cut.start > 0 or cut.duration < recording.duration:
        record["offset"] = cut.start
    record |= {"duration": cut.duration, "text": supervision.text or ""}
    if supervision.speaker:
        record["speaker"] = supervision.speaker
    return record


def resample(cuts: CutSet, sampling_rate: Hertz) -> CutSet:
    """The same utterances at ``sampling_rate`` (Hz), changed when their audio is read."""
    from lhotse import CutSet

    return CutSet.from_cuts(
        cut if cut.sampling_rate == sampling_rate else cut.resample(sampling_rate) for cut in cuts
    )


def perturb_speed(cuts: CutSet, factors: Iterable[float]) -> CutSet:
    """Copies of every cut at each speed; the copy at 1.0 is the cut itself.

    Args:
        cuts: Utterances.
        factors: Speeds above 0; 1.1 is faster, shorter and higher. Copies are named
            `<id>_sp<factor>`.

    Raises:
        ValueError: If a factor is not above 0 or occurs twice.
    """
    from lhotse import CutSet

    wanted = tuple(factors)
    if not wanted or len(set(wanted)) != len(wanted) or min(wanted) <= 0:
        raise ValueError(f"speed_factors must be different numbers above 0, got {wanted}")
    copies: list[Cut] = []
    for factor in wanted:
        copies.extend(cuts if factor == 1.0 else cuts.perturb_speed(factor))
    return CutSet.from_cuts(copies)
