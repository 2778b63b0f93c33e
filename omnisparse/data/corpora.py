"""Corpora as lhotse cuts: one reader for all that is imported or named, with one set of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnisparse.data.checking import check_items
from omnisparse.data.collector import collector_paused
from omnisparse.data.content import ContentCache
from omnisparse.data.formats import FORMATS, CorpusFormat, detect_format, list_corpus
from omnisparse.data.naming import with_distinct_names
from omnisparse.data.normalization import normalize
from omnisparse.data.rates import describe_rates, resample
from omnisparse.data.splitting import parse_shares, require_one_split, split_cuts
from omnisparse.data.validation import (
    SAMPLING_RATE,
    Hertz,
    Item,
    Listing,
    Progress,
    ReadSplit,
    Seconds,
    SkippedItem,
    require_mostly_good,
    summarise_skipped,
)
from omnisparse.data.writing import split_statistics, write_nemo_manifest, write_splits
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

__all__ = [
    "Hertz",
    "ReadSplit",
    "Seconds",
    "SkippedItem",
    "import_corpus",
    "load_manifest",
    "manifest_name",
    "perturb_speed",
    "read_corpus",
    "read_manifest",
    "resample",
    "split_statistics",
    "write_nemo_manifest",
    "write_splits",
]

Tell = Callable[[str], None]
"""Called with a line for a person."""


def read_corpus(
    source: Path,
    *,
    corpus_format: Literal["auto", "nemo", "lhotse", "kaldi", "librispeech", "shar"] = "auto",
    num_jobs: int = 2,
    progress: Progress | None = None,
    rules: Sequence[str] = (),
) -> dict[str, ReadSplit]:
    """Read every split of a corpus and judge all its audio: what each verb and the import do.

    Files that have not changed since they were last judged, by whatever command, are not decoded.

    Args:
        source: A manifest file or the folder of a corpus.
        corpus_format: How to read ``source``; "auto" looks at its files.
        num_jobs: Threads that decode audio.
        progress: Told (utterances done, utterances in all) of each split.
        rules: How transcripts are changed, in order (`normalization.RULES`).

    Returns:
        Splits by name; some may hold no good utterance.

    Raises:
        ValueError: If ``corpus_format`` is unknown.
        DataError: If nothing can be read, or more than 5 % of a split are bad.
    """
    if corpus_format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {corpus_format!r}")
    if not source.exists():
        raise DataError(f"no such file or folder: {source}")
    source = source.absolute()
    known: CorpusFormat = detect_format(source) if corpus_format == "auto" else corpus_format
    cache = ContentCache()
    splits = {}
    with collector_paused():
        listings = list_corpus(source, known)
        for name in list(listings):
            what = str(source) if len(listings) == 1 else f"{source}, split {name}"
            listing = listings[name]
            splits[name] = _read_split(name, listing, cache, num_jobs, progress, rules, what)
            listing.items.clear()  # both at once would be half as much memory again
    bad = [item for split in splits.values() for item in split.skipped[: split.num_bad]]
    total = len(bad) + sum(len(split.cuts) for split in splits.values())
    notes = [line for split in splits.values() for line in split.notes] if total == 0 else []
    require_mostly_good(bad, total, "; ".join([str(source), *notes]))
    return splits


def _read_split(
    name: str,
    listing: Listing,
    cache: ContentCache,
    num_jobs: int,
    progress: Progress | None,
    rules: Sequence[str],
    what: str,
) -> ReadSplit:
    items, changed = _normalize(with_distinct_names(listing.items), rules)
    checked = check_items(items, cache=cache, num_jobs=num_jobs, progress=progress)
    bad = [replace(item, split=name) for item in (*listing.skipped, *checked.skipped)]
    outside = [replace(item, split=name) for item in listing.outside]
    total = len(bad) + len(checked.cuts)
    notes = [*listing.notes, *changed]
    # A split that nobody transcribed is none to read: it is named, and counts in the whole.
    if checked.cuts or any(item.reason != "untranscribed" for item in bad):
        require_mostly_good(bad, total, what)
    if bad and checked.cuts:
        notes.append(
            f"{len(bad):,} of {total:,} utterances are bad, left out: {summarise_skipped(bad)}"
        )
    elif bad:
        notes.append(f"no utterance can be used: {summarise_skipped(bad)}")
    if checked.num_averaged:
        notes.append(
            f"{checked.num_averaged:,} utterances are of files with several channels, and name "
            "none: the mean of the channels is heard"
        )
    if cache.problem:
        notes.append(f"{cache.problem}; audio is decoded anew each time")
    return ReadSplit(name, checked.cuts, (*bad, *outside), len(bad), tuple(notes))


def _normalize(items: list[Item], rules: Sequence[str]) -> tuple[list[Item], list[str]]:
    """Items with changed transcripts, and a line that counts them."""
    if not rules:
        return items, []
    changed, emptied, new = 0, 0, []
    for item in items:
        text = None if item.text is None else normalize(item.text, rules)
        changed += text != item.text
        emptied += bool(item.text and item.text.strip()) and not text
        new.append(replace(item, text=text))
    line = f"transcripts normalized ({', '.join(rules)}): {changed:,} of {len(items):,} changed"
    if emptied:
        line += f"; {emptied:,} have no word left"
    return new, [line]


def read_manifest(
    path: Path,
    *,
    sampling_rate: Hertz | None = None,
    tell: Tell | None = None,
    num_jobs: int = 2,
    progress: Progress | None = None,
) -> ReadSplit:
    """Read one split of a corpus by the rules of :func:`read_corpus`.

    Args:
        path: A manifest (NeMo JSON lines or lhotse cuts, gzipped or not), a folder of shards, a
            Kaldi data directory or a subset of a LibriSpeech tree; told apart by content.
        sampling_rate: Rate at which the audio will be heard, in Hz: other rates are told.
        tell: Told what was left out and what is changed, a line each.
        num_jobs: Threads that decode audio that is not known yet.
        progress: Told (utterances done, utterances in all).

    Raises:
        DataError: If it cannot be read, holds several splits, or more than 5 % are bad.
    """
    if not path.exists():
        raise DataError(f"manifest {path}: no such file")
    splits = read_corpus(path, num_jobs=num_jobs, progress=progress)
    if len(splits) > 1:
        raise DataError(
            f"{path}: a corpus of {len(splits)} splits ({', '.join(splits)}); name one of them"
        )
    (split,) = splits.values()
    if tell is not None:
        rates = [] if sampling_rate is None else describe_rates(split.cuts, sampling_rate)
        for line in (*split.notes, *rates):
            tell(f"{path}: {line}")
    return split


def load_manifest(
    path: Path, *, sampling_rate: Hertz | None = None, tell: Tell | None = None
) -> CutSet:
    """The good utterances of :func:`read_manifest`.

    Returns:
        Cuts with one supervision each, in the order of the corpus, at the rates of their files.

    Raises:
        DataError: As :func:`read_manifest`.
    """
    from lhotse import CutSet

    return CutSet.from_cuts(read_manifest(path, sampling_rate=sampling_rate, tell=tell).cuts)


def manifest_name(path: Path) -> str:
    """Name of a manifest in results: ``books-test`` for ``data/books/test.jsonl.gz``."""
    path = path.absolute()
    return f"{path.parent.name}-{path.name.split('.')[0]}"


def import_corpus(
    source: Path,
    out: Path,
    *,
    corpus_format: Literal["auto", "nemo", "lhotse", "kaldi", "librispeech", "shar"] = "auto",
    num_jobs: int = 2,
    progress: Progress | None = None,
    tell: Tell | None = None,
    rules: Sequence[str] = (),
    split: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge every recording of a corpus and write the good ones as lhotse cuts.

    Args:
        source: A manifest file or the folder of a corpus.
        out: Folder for `<split>.jsonl.gz`, `skipped.jsonl` and `import.json`.
        corpus_format: How to read ``source``; "auto" looks at its files.
        num_jobs: Threads that decode audio.
        progress: Told (utterances done, utterances in all) of each split.
        tell: Told what was left out and what was changed, a line each.
        rules: How transcripts are changed, in order (`normalization.RULES`).
        split: Divide a corpus without splits, as `90/5/5`: train, dev and test by duration, each
            speaker on one side. None keeps the splits of the corpus.
        seed: Seed of the assignment of speakers to splits.

    Returns:
        As :func:`write_splits`, and with ``split`` also `"split_by"` (speaker, recording or
        utterance) and `"notes"` (why it is not by speaker).

    Raises:
        ValueError: If ``corpus_format`` is unknown or ``split`` is not understood.
        DataError: If nothing can be read, more than 5 % of a split are bad, or a corpus that is to
            be divided has splits. Nothing is written then.
    """
    shares = None if split is None else parse_shares(split)
    splits = read_corpus(
        source, corpus_format=corpus_format, num_jobs=num_jobs, progress=progress, rules=rules
    )
    if shares is not None:
        require_one_split(list(splits), str(source))
    for one in splits.values():
        for line in (*one.notes, *describe_rates(one.cuts, SAMPLING_RATE)):
            if tell is not None:
                tell(line if len(splits) == 1 else f"{one.name}: {line}")
    origin: dict[str, Any] = {"source": str(source.absolute()), "normalize": list(rules)}
    if shares is None:
        return write_splits(splits, out, origin)
    (whole,) = splits.values()
    divided = split_cuts(whole.cuts, shares, seed=seed)
    about = {"split_by": divided.by, "notes": list(divided.notes)}
    origin |= {"split": split, "seed": seed, **about}
    return write_splits(splits, out, origin, divided.cuts) | about


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
