"""Checks every recording of a corpus before any training sees it.

One bad file must neither stop a day of training nor enter it silently: each bad item is named with
its reason, left out and counted, and a corpus with too many of them is refused.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

Seconds = float
Hertz = int
Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""

SAMPLING_RATE: Hertz = 16000
MAX_BAD_FRACTION = 0.05
"""Largest share of bad items in a corpus, in [0, 1]; above it the corpus is refused."""


@dataclass(frozen=True, slots=True)
class SkippedItem:
    """An utterance left out, and why."""

    id: str
    """Name of the utterance, or `file:line` where it has none."""
    reason: str
    """One word for counting, such as `missing` or `wrong-rate`."""
    detail: str
    """What was found, for a person."""
    split: str = ""
    """Split that the utterance belongs to, where known."""


@dataclass(frozen=True, slots=True)
class Item:
    """An utterance as a corpus declares it, before its audio has been read."""

    id: str
    path: Path
    text: str
    offset: Seconds = 0.0
    duration: Seconds | None = None
    """None where the corpus does not say; then the utterance lasts to the end of the file."""
    speaker: str | None = None
    segment: bool = False
    """True for a stretch of a longer recording, whose file may end later than the item."""


@dataclass(slots=True)
class Listing:
    """What a corpus declares for one split."""

    items: list[Item] = field(default_factory=list)
    skipped: list[SkippedItem] = field(default_factory=list)


def duration_tolerance(duration: Seconds) -> Seconds:
    """Difference between declared and decoded duration that rounding and codecs explain."""
    return max(0.1, 0.01 * duration)


def summarise_skipped(skipped: Sequence[SkippedItem], num_names: int = 3) -> str:
    """One line: each reason with its count, its first names and what was found at the first.

    Args:
        skipped: Items left out.
        num_names: Names shown for each reason.
    """
    names: dict[str, list[str]] = defaultdict(list)
    details: dict[str, str] = {}
    for item in skipped:
        names[item.reason].append(item.id)
        details.setdefault(item.reason, " ".join(item.detail.split()))
    parts = []
    for reason, count in Counter(item.reason for item in skipped).most_common():
        shown = ", ".join(names[reason][:num_names]) + (", ..." if count > num_names else "")
        parts.append(f"{reason} {count} ({shown}; the first: {details[reason]})")
    return "; ".join(parts)


def require_mostly_good(skipped: Sequence[SkippedItem], total: int, what: str) -> None:
    """Refuse a corpus of which too much is bad.

    Args:
        skipped: Items left out.
        total: Items looked at, bad ones included.
        what: Name of the corpus for the message.

    Raises:
        DataError: If nothing is left, or more than 5 % of ``total`` were skipped.
    """
    if total == 0:
        raise DataError(f"{what}: no utterances found")
    if len(skipped) == total or len(skipped) > MAX_BAD_FRACTION * total:
        share = 100 * len(skipped) / total
        raise DataError(
            f"{what}: {len(skipped)} of {total} utterances ({share:.1f} %) are bad, more than the "
            f"{100 * MAX_BAD_FRACTION:.0f} % allowed: {summarise_skipped(skipped)}"
        )


def write_skipped(skipped: Iterable[SkippedItem], path: Path) -> None:
    """Write the items left out as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for item in skipped:
            file.write(json.dumps(asdict(item)) + "\n")


class _BadAudioError(Exception):
    """Carries the reason and detail of a bad file or stretch to where it is recorded."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def check_items(
    items: Sequence[Item],
    *,
    sampling_rate: Hertz = SAMPLING_RATE,
    num_jobs: int = 2,
    progress: Progress | None = None,
) -> tuple[list[MonoCut], list[SkippedItem]]:
    """Read the audio of every item in full and keep the sound ones as cuts.

    Args:
        items: Utterances as declared.
        sampling_rate: The only rate accepted, in Hz.
        num_jobs: Threads; decoding releases the interpreter lock.
        progress: Told after each file.

    Returns:
        Cuts of the good items with decoded (not declared) durations, and the bad items; both in
        the order of ``items``.
    """
    unique, skipped = _drop_repeated_and_untranscribed(items)
    groups: dict[Path, list[Item]] = defaultdict(list)
    for item in unique:
        groups[item.path].append(item)

    def check(group: list[Item]) -> list[MonoCut | SkippedItem]:
        return _check_file(group, sampling_rate)

    results: dict[str, MonoCut | SkippedItem] = {}
    done = 0
    with ThreadPoolExecutor(max_workers=num_jobs) as pool:
        for group, outcome in zip(groups.values(), pool.map(check, groups.values()), strict=True):
            results.update({item.id: one for item, one in zip(group, outcome, strict=True)})
            done += len(group)
            if progress is not None:
                progress(done, len(unique))
    cuts = []
    for item in unique:
        outcome_of_item = results[item.id]
        if isinstance(outcome_of_item, SkippedItem):
            skipped.append(outcome_of_item)
        else:
            cuts.append(outcome_of_item)
    return cuts, skipped


def _drop_repeated_and_untranscribed(
    items: Sequence[Item],
) -> tuple[list[Item], list[SkippedItem]]:
    kept: dict[str, Item] = {}
    skipped = []
    for item in items:
        if item.id in kept:
            detail = f"the name is also that of {kept[item.id].path}"
            skipped.append(SkippedItem(item.id, "duplicate", detail))
        elif not item.text.strip():
            skipped.append(SkippedItem(item.id, "untranscribed", f"no text for {item.path}"))
        else:
            kept[item.id] = item
    return list(kept.values()), skipped


def _check_file(items: list[Item], sampling_rate: Hertz) -> list[MonoCut | SkippedItem]:
    try:
        samples = _read_whole(items[0].path, sampling_rate)
    except _BadAudioError as bad:
        return [SkippedItem(item.id, bad.reason, bad.detail) for item in items]
    outcome: list[MonoCut | SkippedItem] = []
    for item in items:
        try:
            outcome.append(_make_cut(item, samples, sampling_rate))
        except _BadAudioError as bad:
            outcome.append(SkippedItem(item.id, bad.reason, bad.detail))
    return outcome


def _read_whole(path: Path, sampling_rate: Hertz) -> npt.NDArray[np.float32]:
    """Decode a file that must be a readable mono recording at ``sampling_rate``."""
    import soundfile

    if not path.is_file():
        raise _BadAudioError("missing", f"no such file: {path}")
    if path.stat().st_size == 0:
        raise _BadAudioError("empty", f"file of 0 bytes: {path}")
    try:
        header = soundfile.info(str(path))
        if header.samplerate != sampling_rate:
            detail = f"{header.samplerate} Hz instead of {sampling_rate} Hz: {path}"
            raise _BadAudioError("wrong-rate", detail)
        if header.channels != 1:
            raise _BadAudioError("multichannel", f"{header.channels} channels: {path}")
        samples: npt.NDArray[np.float32]
        samples, _ = soundfile.read(str(path), dtype="float32")
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise _BadAudioError("unreadable", f"{path}: {error}") from error
    if len(samples) == 0:
        raise _BadAudioError("header-only", f"a header and no audio: {path}")
    declared, decoded = header.frames / sampling_rate, len(samples) / sampling_rate
    if abs(declared - decoded) > duration_tolerance(declared):
        detail = f"header says {declared:.2f} s, {decoded:.2f} s could be decoded: {path}"
        raise _BadAudioError("unreadable", detail)
    return samples


def _make_cut(item: Item, samples: npt.NDArray[np.float32], sampling_rate: Hertz) -> MonoCut:
    length = len(samples) / sampling_rate
    available = length - item.offset
    declared = available if item.duration is None else item.duration
    difference = declared - available
    # A segment may end before its file does; a whole file may not.
    if difference > duration_tolerance(declared) or (
        not item.segment and -difference > duration_tolerance(declared)
    ):
        detail = f"declared {declared:.2f} s, found {available:.2f} s: {item.path}"
        raise _BadAudioError("duration-mismatch", detail)
    num_samples = len(samples) - round(item.offset * sampling_rate)
    if item.segment:
        num_samples = min(num_samples, round(declared * sampling_rate))
    if num_samples <= 0:
        raise _BadAudioError("empty", f"a stretch of 0 samples: {item.path}")
    start = round(item.offset * sampling_rate)
    stretch = samples[start : start + num_samples]
    if not np.isfinite(stretch).all():
        raise _BadAudioError("not-finite", f"NaN or infinite samples: {item.path}")
    if not stretch.any():
        raise _BadAudioError("silent", f"every sample is 0: {item.path}")
    return make_cut(
        item,
        num_samples=num_samples,
        recording_samples=len(samples),
        sampling_rate=sampling_rate,
    )


def make_cut(
    item: Item, *, num_samples: int, recording_samples: int, sampling_rate: Hertz
) -> MonoCut:
    """A lhotse cut of ``item`` with one supervision.

    Args:
        item: The utterance.
        num_samples: Samples of the utterance.
        recording_samples: Samples of the whole file.
        sampling_rate: In Hz.
    """
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    duration = num_samples / sampling_rate
    recording = Recording(
        id=item.id,
        sources=[AudioSource(type="file", channels=[0], source=str(item.path))],
        sampling_rate=sampling_rate,
        num_samples=recording_samples,
        duration=recording_samples / sampling_rate,
    )
    supervision = SupervisionSegment(
        id=item.id,
        recording_id=item.id,
        start=0.0,
        duration=duration,
        channel=0,
        text=item.text,
        speaker=item.speaker,
    )
    fields: dict[str, Any] = {"id": item.id, "start": item.offset, "duration": duration}
    return MonoCut(**fields, channel=0, supervisions=[supervision], recording=recording)
