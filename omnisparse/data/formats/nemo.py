"""NeMo manifests: JSON lines, each naming a sound file, its words and what part of it they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnisparse.data.formats.lines import locate, parse_json, read_lines
from omnisparse.data.validation import Item, Listing, SkippedItem
from omnisparse.errors import DataError

AUDIO_KEYS = ("audio_filepath", "audio_filename", "audio_file")
"""Names under which NeMo's versions look for the sound file."""

_MOST_SECONDS = 1e9


def audio_of(record: dict[str, Any]) -> Any:
    """What a record names as its sound file; None where it names none."""
    return next((record[key] for key in AUDIO_KEYS if key in record), None)


def list_nemo(path: Path) -> Listing:
    """Utterances of a NeMo manifest.

    Raises:
        DataError: If the file cannot be read.
    """
    listing = Listing()
    folder = path.parent.absolute()
    for number, line in read_lines(path):
        try:
            listing.items.append(parse_nemo_line(line, folder))
        except ValueError as error:
            name = f"{path.name}:{number}"
            listing.skipped.append(SkippedItem(name, "malformed", str(error)))
    return listing


def parse_nemo_line(line: str, folder: Path) -> Item:
    """One line of a NeMo manifest.

    Args:
        line: A JSON object with a sound file (`AUDIO_KEYS`) and `text` (or `text_filepath` or
            `normalized_text`), and where known `duration`, `offset` (s), `speaker`, `id` and
            `channel_selector`.
        folder: Where the manifest lies.

    Raises:
        ValueError: If the line is not such an object.
    """
    record = parse_json(line)
    audio = audio_of(record)
    if not isinstance(audio, str) or not audio:
        raise ValueError(f"no {AUDIO_KEYS[0]}")
    duration = _seconds(record, "duration")
    if duration == 0.0:
        raise ValueError("duration must be above 0")
    offset = _seconds(record, "offset")
    name, speaker = record.get("id"), record.get("speaker")
    return Item(
        id=audio.rsplit(".", 1)[0] if name is None else str(name),
        path=locate(audio, folder),
        text=_text(record, folder),
        offset=offset or 0.0,
        duration=duration,
        speaker=None if speaker is None else str(speaker),
        segment=offset is not None,
        channels=_channels(record.get("channel_selector")),
        is_named=name is not None,
    )


def _text(record: dict[str, Any], folder: Path) -> str | None:
    key = next((key for key in ("text", "text_filepath", "normalized_text") if key in record), None)
    if key is None or record[key] is None:
        return None
    text = record[key]
    if not isinstance(text, str):
        raise ValueError(f"{key} must be a string, got {str(text)[:40]!r}")
    if key == "text_filepath":
        try:
            return " ".join(line for _, line in read_lines(locate(text, folder)))
        except DataError as error:
            raise ValueError(str(error)) from error
    return text


def _seconds(record: dict[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 <= value < _MOST_SECONDS
    ):
        raise ValueError(f"{name} must be a number of seconds from 0, got {str(value)[:40]!r}")
    return float(value)


def _channels(value: Any) -> tuple[int, ...] | None:
    """Channels that `channel_selector` asks for; None for the mean of all."""
    if value is None or value == "average":
        return None
    asked = value if isinstance(value, list) else [value]
    if not asked or any(type(one) is not int or one < 0 for one in asked):
        raise ValueError(
            "channel_selector must be a channel from 0, a list of them or 'average', "
            f"got {str(value)[:40]!r}"
        )
    return tuple(dict.fromkeys(asked))
