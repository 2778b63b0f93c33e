"""Every recording of a corpus is decoded once before anything uses it, and judged by its content.

What decoding showed is kept by the content of the file, so that the second reading of a corpus, or
the reading of another one of the same files, costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnisparse.data.audio import read_samples, recordings_of
from omnisparse.data.content import ContentCache, State, digest_file, file_state
from omnisparse.data.cuts import make_cut
from omnisparse.data.decoding import BadAudioError, FloatArray, decoded, is_cut_short
from omnisparse.data.identity import sound_rows
from omnisparse.data.members import parse_member
from omnisparse.data.validation import (
    Item,
    Progress,
    Seconds,
    SkippedItem,
    duration_tolerance,
)
from omnisparse.errors import DataError

Document = dict[str, Any]
"""What is known of a file: `rate` (Hz), `channels`, `frames` (decoded), `bad` (reason and detail,
or None), `stretches` (what was heard in each that was asked for)."""
Place = tuple[int, int, tuple[int, ...] | None]
"""First sample, the one after the last (-1: to the end), and channels of a stretch."""

_SHORTEST_SECONDS: Seconds = 0.01  # one frame: what is shorter has no features
_FILES_AT_ONCE = 256
_VERSION = 1  # of the judgement; other documents are not believed


@dataclass(slots=True)
class Checked:
    """The utterances of a corpus after its audio was judged."""

    cuts: list[Any] = field(default_factory=list)
    """Good ones, in order, with decoded (not declared) durations."""
    skipped: list[SkippedItem] = field(default_factory=list)
    """Bad ones, in order."""
    num_averaged: int = 0
    """Good ones of files with several channels of which the corpus names none."""


def check_items(
    items: Sequence[Item],
    *,
    cache: ContentCache,
    num_jobs: int = 2,
    progress: Progress | None = None,
) -> Checked:
    """Judge the audio of every item, and make cuts of the good ones.

    Args:
        items: Utterances as declared.
        cache: What is known from before; filled.
        num_jobs: Threads; decoding releases the interpreter lock.
        progress: Told after each file.
    """
    unique, skipped = _drop_repeated_and_untranscribed(items)
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in unique:
        if item.composed is None and item.judged is None:
            groups[str(item.path.absolute())].append(item)
    documents = _examine_files(groups, cache, num_jobs, progress, len(unique))
    composed = [item for item in unique if item.composed is not None]
    composed_documents = _examine_composed(composed, cache)
    checked = Checked(skipped=skipped)
    for item in unique:
        try:
            if item.composed is not None:
                _judge_composed(item, composed_documents[item.id])
                checked.cuts.append(item.composed)
                continue
            document = _document_of(item) or documents[str(item.path.absolute())]
            checked.cuts.append(_judge(item, document))
            checked.num_averaged += item.channels is None and document["channels"] > 1
        except BadAudioError as bad:
            checked.skipped.append(SkippedItem(item.id, bad.reason, bad.detail))
    return checked


def _drop_repeated_and_untranscribed(
    items: Sequence[Item],
) -> tuple[list[Item], list[SkippedItem]]:
    kept: dict[str, Item] = {}
    skipped = []
    for item in items:
        if item.id in kept:
            detail = f"the name is also that of {kept[item.id].path}"
            skipped.append(SkippedItem(item.id, "duplicate", detail))
        elif item.text is None:
            skipped.append(SkippedItem(item.id, "untranscribed", f"no text for {item.path}"))
        else:
            kept[item.id] = item
    return list(kept.values()), skipped


def _examine_files(
    groups: dict[str, list[Item]],
    cache: ContentCache,
    num_jobs: int,
    progress: Progress | None,
    total: int,
) -> dict[str, Document]:
    """What is known of each file, by its path; what is not known yet is found out and kept."""
    digests = cache.known_digests(groups)
    known = cache.documents(digests.values())
    documents: dict[str, Document] = {}
    for path, digest in digests.items():
        document = known.get(digest)
        if document is not None and not _unanswered(document, groups[path]):
            documents[path] = document
    done = sum(len(groups[path]) for path in documents)
    left = [path for path in groups if path not in documents]
    with ThreadPoolExecutor(max_workers=max(1, num_jobs)) as pool:
        for first in range(0, len(left), _FILES_AT_ONCE):
            part = {path: groups[path] for path in left[first : first + _FILES_AT_ONCE]}
            for path, document in _examine_part(part, cache, pool):
                documents[path] = document
                done += len(part[path])
                if progress is not None:
                    progress(done, total)
    return documents


def _examine_part(
    groups: dict[str, list[Item]], cache: ContentCache, pool: ThreadPoolExecutor
) -> Iterator[tuple[str, Document]]:
    """Documents of some files, which are kept at once: a stop loses the work on one part only."""
    identified = dict(zip(groups, pool.map(_identify, groups), strict=True))
    # A file may have been known elsewhere, or by other stretches of it.
    known = cache.documents(one.digest for one in identified.values() if one.digest)

    def examine(path: str) -> Document:
        bad = identified[path].bad
        if bad is not None:
            return _bad_document(*bad)
        document = known.get(identified[path].digest)
        if document is not None and not _unanswered(document, groups[path]):
            return document
        try:
            return _decode(path, groups[path])
        except BadAudioError as error:
            return _bad_document(error.reason, error.detail)

    files: dict[str, tuple[State, str]] = {}
    found: dict[str, Document] = {}
    for path, document in zip(groups, pool.map(examine, groups), strict=True):
        state, digest = identified[path].state, identified[path].digest
        if state is not None and digest:
            files[path] = (state, digest)
            before = found.get(digest, known.get(digest, {})).get("stretches", {})
            document["stretches"] = {**before, **document["stretches"]}
            found[digest] = document
        yield path, document
    cache.keep(files, found)


@dataclass(frozen=True, slots=True)
class _Identified:
    """A file by its content."""

    state: State | None
    digest: str
    """Empty where it cannot be read."""
    bad: tuple[str, str] | None
    """Reason and detail where it cannot be read."""


def _identify(path: str) -> _Identified:
    state = file_state(path)
    if state is None or not (parse_member(path) or Path(path).is_file()):
        detail = "no such file" if state is None else "not a file"
        return _Identified(None, "", ("missing", detail))
    try:
        return _Identified(state, digest_file(path), None)
    except OSError as error:
        detail = (error.strerror or "it cannot be read").lower()
        return _Identified(None, "", ("unreadable", detail))


def _document_of(item: Item) -> Document | None:
    """What the index of a shard tells of the file of an item; None where the item has none."""
    if item.judged is None:
        return None
    judged = item.judged
    document: Document = {
        **{"version": _VERSION, "rate": judged.sampling_rate, "channels": judged.channels},
        **{"frames": judged.frames, "bad": None},
    }
    return {**document, "stretches": {_name(_place(item, document)): judged.heard}}


def _bad_document(reason: str, detail: str) -> Document:
    return {
        **{"version": _VERSION, "rate": 0, "channels": 0, "frames": 0},
        **{"bad": [reason, detail], "stretches": {}},
    }


def _unanswered(document: Document, items: Iterable[Item]) -> bool:
    """Whether a document leaves open what is asked of it."""
    if document.get("version") != _VERSION:
        return True
    if document["bad"] is not None:
        return False
    stretches = document["stretches"]
    return any(_name(_place(item, document)) not in stretches for item in items)


def _place(item: Item, document: Document) -> Place:
    """What an item asks of a file of this rate and so many channels."""
    rate, channels = document["rate"], item.channels
    if channels == tuple(range(document["channels"])):
        channels = None
    start = round(item.offset * rate)
    if not item.segment or item.duration is None:
        return start, -1, channels
    return start, start + round(item.duration * rate), channels


def _name(place: Place) -> str:
    channels = "*" if place[2] is None else ",".join(map(str, place[2]))
    return f"{place[0]}:{place[1]}:{channels}"


def _decode(path: str, items: Iterable[Item]) -> Document:
    """Decode a file once and listen to all stretches that are asked for."""
    frames = 0
    with decoded(path) as (header, blocks):
        document: Document = {"version": _VERSION, "rate": header.sampling_rate}
        document["channels"] = header.channels
        places = {_place(item, document) for item in items}
        heard = {place: _Heard() for place in sorted(places, key=lambda place: place[:2])}
        for block in blocks:
            for place, state in heard.items():
                start, stop = place[0] - frames, place[1] - frames
                if start >= len(block):
                    break
                if place[1] < 0 or stop > 0:
                    stretch = block[max(0, start) : len(block) if place[1] < 0 else stop]
                    state.listen(stretch, place[2])
            frames += len(block)
    cut_short = is_cut_short(header, frames)
    bad = None if cut_short is None else ["unreadable", cut_short]
    if frames == 0:
        bad = ["header-only", "a header and no audio"]
    stretches = {_name(place): state.result for place, state in heard.items()}
    return {**document, "frames": frames, "bad": bad, "stretches": stretches}


@dataclass(slots=True)
class _Heard:
    """What a stretch sounds like, as far as it was heard."""

    is_silent: bool = True
    is_finite: bool = True

    def listen(self, samples: FloatArray, channels: tuple[int, ...] | None) -> None:
        """Take the next samples, [N, C]."""
        if channels is not None:
            if max(channels) >= samples.shape[1]:
                return  # told of the file
            samples = samples[:, list(channels)]
        heard = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
        self.is_silent = self.is_silent and not heard.any()
        self.is_finite = self.is_finite and bool(np.isfinite(heard).all())

    @property
    def result(self) -> str:
        """One word."""
        if not self.is_finite:
            return "not-finite"
        return "silent" if self.is_silent else "sound"


def _judge(item: Item, document: Document) -> Any:
    """A cut of what an item declares, as the file holds it.

    Raises:
        BadAudioError: If the file does not hold it.
    """
    if document["bad"] is not None:
        reason, detail = document["bad"]
        raise BadAudioError(reason, f"{detail}: {item.path}")
    rate, frames = document["rate"], document["frames"]
    place = _place(item, document)
    if item.channels is not None and max(item.channels) >= document["channels"]:
        count = document["channels"]
        detail = f"no channel {max(item.channels)}, the file has {count} (from 0): {item.path}"
        raise BadAudioError("no-channel", detail)
    available = frames / rate - item.offset
    declared = available if item.duration is None else item.duration
    difference = declared - available
    # A segment may end before its file does; a whole file may not.
    if difference > duration_tolerance(declared) or (
        not item.segment and -difference > duration_tolerance(declared)
    ):
        detail = f"declared {declared:.2f} s, found {max(0.0, available):.2f} s: {item.path}"
        raise BadAudioError("duration-mismatch", detail)
    stop = frames if place[1] < 0 else min(place[1], frames)
    num_samples = stop - place[0]
    if num_samples < _SHORTEST_SECONDS * rate:
        detail = f"a stretch of {max(0, num_samples)} samples: {item.path}"
        raise BadAudioError("empty", detail)
    _require_sound(document["stretches"][_name(place)], item)
    return make_cut(
        item,
        num_samples=num_samples,
        recording_samples=frames,
        sampling_rate=rate,
        num_channels=document["channels"],
    )


def _require_sound(heard: str, item: Item) -> None:
    """Refuse audio that is no sound; silence is one where nobody is said to speak."""
    if heard == "not-finite":
        raise BadAudioError("not-finite", f"NaN or infinite samples: {item.path}")
    if heard == "silent" and (item.text or "").strip():
        raise BadAudioError("silent", f"every sample is 0: {item.path}")


def _examine_composed(items: Sequence[Item], cache: ContentCache) -> dict[str, Document]:
    """What is known of cuts that lhotse puts together, by the names of the items."""
    cuts = [item.composed for item in items]
    rows = sound_rows([cut for cut in cuts if cut is not None], cache)
    keys = {
        item.id: "cut:" + hashlib.blake2b(json.dumps(row, default=str).encode()).hexdigest()[:40]
        for item, row in zip(items, rows, strict=True)
    }
    known = cache.documents(keys.values())
    found: dict[str, Document] = {}
    for item in items:
        if known.get(keys[item.id], {}).get("version") != _VERSION:
            known[keys[item.id]] = found[keys[item.id]] = _listen_to_composed(item)
    kept = {key: one for key, one in found.items() if (one["bad"] or [""])[0] != "missing"}
    cache.keep({}, kept)
    return {item.id: known[keys[item.id]] for item in items}


def _listen_to_composed(item: Item) -> Document:
    cut: Any = item.composed
    document: Document = {"version": _VERSION, "bad": None, "heard": "sound"}
    for recording in recordings_of(cut):
        for source in recording.sources:
            if file_state(str(source.source)) is None:
                document["bad"] = ["missing", f"no such file: {source.source}"]
                return document
    if cut.num_samples < _SHORTEST_SECONDS * cut.sampling_rate:
        document["bad"] = ["empty", f"a stretch of {cut.num_samples} samples"]
        return document
    try:
        document["heard"] = "sound" if read_samples(cut).any() else "silent"
    except DataError as error:
        document["bad"] = ["unreadable", str(error).removeprefix(f"{cut.id}: ")]
    return document


def _judge_composed(item: Item, document: Document) -> None:
    if document["bad"] is not None:
        raise BadAudioError(*document["bad"])
    _require_sound(document["heard"], item)
