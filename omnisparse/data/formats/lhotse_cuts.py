"""Lhotse manifests, of cuts or of recordings and supervisions: a supervision is an utterance.

A manifest is data, and may be a stranger's: nothing that it names is run or fetched.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnisparse.data.formats.lines import locate, parse_json, read_lines
from omnisparse.data.validation import Item, Listing, SkippedItem, duration_tolerance

# What is raised where a record lacks what it expects.
NOT_A_CUT = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
    OverflowError,  # a whole number that no float can be
)
_PLAIN = {"MonoCut", "MultiCut", "Cut"}
_ADVICE = "only 'file' is read; save the audio to files and name those"
_NANOSECOND = 1e-9
_MAX_SECONDS = 1e9  # 30 years: times a sampling rate it is a number of samples still


def list_cuts(path: Path) -> Listing:
    """Utterances of a manifest of cuts.

    Raises:
        DataError: If the file cannot be read.
    """
    listing = Listing()
    folder = path.parent.absolute()
    for number, line in read_lines(path):
        name = f"{path.name}:{number}"
        try:
            list_record(parse_json(line), folder, listing, name)
        except NOT_A_CUT as error:
            listing.skipped.append(SkippedItem(name, "malformed", why_no_cut(error)))
    return listing


def list_pair(recordings: Path, supervisions: Path) -> Listing:
    """Utterances of a manifest of recordings and one of their supervisions.

    Raises:
        DataError: If a file cannot be read.
    """
    listing = Listing()
    spoken: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, line in read_lines(supervisions):
        try:
            record = parse_json(line)
            spoken[str(record["recording_id"])].append(record)
        except (ValueError, KeyError) as error:
            name = f"{supervisions.name}:{number}"
            listing.skipped.append(SkippedItem(name, "malformed", why_no_cut(error)))
    for number, line in read_lines(recordings):
        name = f"{recordings.name}:{number}"
        try:
            recording = parse_json(line)
            channels = [c for source in recording["sources"] for c in source["channels"]]
            cut = {
                **{"type": "MultiCut", "id": recording["id"], "channel": channels},
                **{"start": 0.0, "duration": recording["duration"], "recording": recording},
                "supervisions": spoken.pop(str(recording["id"]), []),
            }
            list_record(cut, recordings.parent.absolute(), listing, name, by_supervision=True)
        except NOT_A_CUT as error:
            listing.skipped.append(SkippedItem(name, "malformed", why_no_cut(error)))
    for name, records in spoken.items():
        for record in records:
            detail = f"no recording {name} in {recordings.name}"
            listing.skipped.append(SkippedItem(str(record.get("id")), "missing", detail))
    return listing


def why_no_cut(error: Exception) -> str:
    """Why a record is no cut, in words of our own."""
    if type(error) is ValueError:
        return str(error)
    if isinstance(error, KeyError) and error.args:
        return f"not a lhotse cut: no {error.args[0]}"
    return "not a lhotse cut: a field is missing or of another type"


def list_record(
    record: dict[str, Any],
    folder: Path,
    listing: Listing,
    name: str,
    *,
    by_supervision: bool = False,
) -> None:
    """Take up the utterances of one cut.

    Args:
        record: The cut; the places of its audio become absolute.
        folder: That relative places are of.
        listing: Gets items and what is skipped.
        name: Of the line, for what has no name.
        by_supervision: Whether every utterance has the name of its supervision.

    Raises:
        ValueError: If it cannot be used; and the others of `NOT_A_CUT`.
    """
    identity = str(record.get("id", name))
    for source in _heard_sources(record):
        if source.get("type") != "file":
            detail = f"audio of the type {source.get('type')!r}, {_ADVICE}"
            listing.skipped.append(SkippedItem(identity, "unsupported", detail))
            return
        source["source"] = str(locate(str(source["source"]), folder))
    kind = record.get("type")
    recording = record.get("recording")
    if kind in _PLAIN and not isinstance(recording, dict):
        raise ValueError(f"cut {identity} names no audio")
    if kind not in _PLAIN | {"MixedCut"}:
        raise ValueError(f"type {kind!r} is no cut of audio")
    supervisions = _supervisions(record)
    if not supervisions:
        listing.skipped.append(SkippedItem(identity, "untranscribed", "no supervision"))
    for supervision in supervisions:
        alone = len(supervisions) == 1 and not by_supervision
        utterance = identity if alone else str(supervision.get("id", identity))
        stretch = _clip(supervision, _number(_length_of(record), "duration"))
        if isinstance(stretch, SkippedItem):
            listing.skipped.append(replace(stretch, id=utterance))
            continue
        listing.items.append(_item(record, supervision, stretch, utterance))


def _supervisions(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Supervisions of a cut, in its own time."""
    if record.get("type") != "MixedCut":
        return list(record.get("supervisions") or [])
    found = []
    for track in record["tracks"]:
        offset = _number(track.get("offset", 0.0), "offset of a track")
        for one in track["cut"].get("supervisions") or []:
            found.append({**one, "start": _number(one["start"], "start") + offset})
    return found


def _length_of(record: dict[str, Any]) -> Any:
    if record.get("type") != "MixedCut":
        return record["duration"]
    ends = (
        _number(t.get("offset", 0.0), "offset of a track")
        + _number(t["cut"]["duration"], "duration")
        for t in record["tracks"]
    )
    return max(ends)


def _clip(supervision: dict[str, Any], length: float) -> tuple[float, float] | SkippedItem:
    """Start and end of a supervision within its cut, in s; an item where it does not lie there."""
    start = _number(supervision["start"], "start of a supervision")
    duration = _number(supervision["duration"], "duration of a supervision")
    end = start + duration
    if duration <= 0:
        return SkippedItem("", "empty", f"a supervision of {duration:g} s")
    outside = max(-start, end - length)
    if outside > duration_tolerance(duration):
        detail = f"a supervision from {start:.2f} s to {end:.2f} s of a cut of {length:.2f} s"
        return SkippedItem("", "sticks-out", detail)
    clipped = max(0.0, start), min(length, end)
    if clipped[1] <= clipped[0]:
        return SkippedItem("", "empty", "a supervision outside of its cut")
    return clipped


def _item(
    record: dict[str, Any],
    supervision: dict[str, Any],
    stretch: tuple[float, float],
    name: str,
) -> Item:
    text, speaker = supervision.get("text"), supervision.get("speaker")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text of {name} must be a string, got {str(text)[:40]!r}")
    item = Item(
        id=name,
        path=Path(),
        text=text,
        speaker=None if speaker is None else str(speaker),
        duration=stretch[1] - stretch[0],
    )
    if record["type"] == "MixedCut":
        return replace(item, composed=_composed(record, stretch, item), path=_first_path(record))
    recording = record["recording"]
    channels = _channels(record, supervision, name)
    holders = [source for source in recording["sources"] if set(channels) & set(source["channels"])]
    source = holders[0] if holders else recording["sources"][0]
    start = _number(record["start"], "start") + stretch[0]
    if start < -_NANOSECOND:
        raise ValueError(f"cut {name} begins at {start:g} s, before its recording")
    if len(holders) > 1 or recording.get("transforms"):
        composed = _composed(record, stretch, item, channels)
        return replace(item, composed=composed, path=Path(source["source"]))
    known = list(source["channels"])
    # A channel that the manifest does not know lies behind those that it does.
    places = [known.index(one) if one in known else max(one, len(known)) for one in channels]
    length = _number(recording["duration"], "duration of the recording")
    starts, ends = start < _NANOSECOND, start + stretch[1] - stretch[0] > length - _NANOSECOND
    return replace(
        item,
        path=Path(source["source"]),
        offset=max(0.0, start),
        segment=not (starts and ends),
        channels=tuple(places),
    )


def _channels(record: dict[str, Any], supervision: dict[str, Any], name: str) -> list[int]:
    """Channels that are heard: those of the supervision, of which the cut holds."""
    cut, own = (
        [value] if isinstance(value, int) else list(value)
        for value in (record["channel"], supervision.get("channel", record["channel"]))
    )
    if record["type"] != "MultiCut":
        return cut  # of one channel, whatever its supervision says
    channels = [channel for channel in own if channel in cut]
    if not channels:
        raise ValueError(f"cut {name}: its supervision is on channel {own}, the cut has {cut}")
    return channels


def _composed(
    record: dict[str, Any],
    stretch: tuple[float, float],
    item: Item,
    channels: list[int] | None = None,
) -> Any:
    """The part of a cut that a supervision spans, put together by lhotse when it is read."""
    from lhotse import MonoCut, SupervisionSegment
    from lhotse.cut import MultiCut
    from lhotse.cut.data import DataCut
    from lhotse.serialization import deserialize_item

    cut: Any = deserialize_item(copy.deepcopy(record))
    start, duration = stretch[0], stretch[1] - stretch[0]
    words = SupervisionSegment(
        id=item.id, recording_id=item.id, start=0.0, duration=duration,
        channel=0, text=item.text, speaker=item.speaker,
    )  # fmt: skip
    if channels is not None:
        channel: Any = channels[0] if len(channels) == 1 else channels
        fields: dict[str, Any] = {
            **{"id": item.id, "start": cut.start + start, "duration": duration},
            **{"channel": channel, "recording": cut.recording},
        }
        words.channel = channel
        kind = MonoCut if len(channels) == 1 else MultiCut
        return kind(**fields, supervisions=[words])
    if start > 0 or duration < cut.duration - _NANOSECOND:
        cut = cut.truncate(offset=start, duration=duration)
    bare = cut.drop_supervisions().with_id(item.id)
    if not hasattr(bare, "tracks"):  # the rest of a mixture may be one cut
        return replace(bare, supervisions=[words])
    place = next(i for i, track in enumerate(bare.tracks) if isinstance(track.cut, DataCut))
    track = bare.tracks[place]
    words.start = -track.offset  # in the time of the track
    tracks = list(bare.tracks)
    tracks[place] = replace(track, cut=replace(track.cut, supervisions=[words]))
    return replace(bare, tracks=tracks)


def _first_path(record: dict[str, Any]) -> Path:
    source = next(_audio_sources(record), None)
    if source is None:
        raise ValueError(f"cut {record.get('id')} names no audio")
    return Path(source["source"])


def _number(value: Any, name: str) -> float:
    # A comparison, because a whole number of any length is legal in JSON; NaN fails it, too.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_MAX_SECONDS < value < _MAX_SECONDS:
        raise ValueError(f"{name} must be a number of seconds, got {str(value)[:40]!r}")
    return float(value)


def _heard_sources(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Audio sources that a cut is heard from; of a plain cut nothing else of the record is used."""
    recording = record.get("recording")
    if (
        record.get("type") in _PLAIN
        and isinstance(recording, dict)
        and not recording.get("transforms")
    ):
        return list(recording["sources"])
    return list(_audio_sources(record))


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
