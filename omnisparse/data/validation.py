"""What a corpus declares of its utterances, and the rules by which bad ones are left out.

A bad file must not stop a long training, and must not be used without notice. So each bad item is
named with its reason, left out and counted, and a corpus with too many of them is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse.cut import Cut

Seconds = float
Hertz = int
Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""

SAMPLING_RATE: Hertz = 16000
MAX_BAD_FRACTION = 0.05
"""Largest share of bad items in a corpus, in [0, 1]; above it the corpus is refused."""


@dataclass(frozen=True, slots=True)
class SkippedItem:
    """An utterance that is left out, and the reason."""

    id: str
    """Name of the utterance, or `file:line` if it has none."""
    reason: str
    """One word for counting, such as `missing` or `wrong-rate`."""
    detail: str
    """The finding, in words."""
    split: str = ""
    """Split that the utterance belongs to, where known."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What decoding a whole file showed, before a corpus was read: an index of shards says it."""

    sampling_rate: Hertz
    channels: int
    """Channels."""
    frames: int
    """Samples of each channel that were decoded."""
    heard: str
    """One word: `sound`, or `silent` where every sample is 0."""


@dataclass(frozen=True, slots=True)
class Item:
    """An utterance as a corpus declares it, before its audio has been read."""

    id: str
    path: Path
    text: str | None
    """None where the corpus has no transcript for it; empty where nobody speaks."""
    offset: Seconds = 0.0
    duration: Seconds | None = None
    """None if the corpus does not state it; then the utterance lasts to the end of the file."""
    speaker: str | None = None
    segment: bool = False
    """True for a stretch of a longer recording, whose file may end later than the item."""
    channels: tuple[int, ...] | None = None
    """Places in the file of the channels that are heard, from 0, their mean where they are several;
    None where the corpus names none, for all."""
    is_named: bool = True
    """False where the corpus gives no name and ``id`` was made of the file's."""
    composed: Cut | None = None
    """What is heard, where that is no stretch of one file as it is: lhotse puts it together."""
    judged: Judged | None = None
    """What is known of its file, all of which the item is; None where that has to be found out."""


@dataclass(slots=True)
class Listing:
    """What a corpus declares for one split."""

    items: list[Item] = field(default_factory=list)
    skipped: list[SkippedItem] = field(default_factory=list)
    """Bad ones, which count."""
    outside: list[SkippedItem] = field(default_factory=list)
    """Ones that the corpus itself leaves out, as Kaldi's tables do; they do not count."""
    notes: list[str] = field(default_factory=list)
    """Lines for a person."""


@dataclass(frozen=True, slots=True)
class ReadSplit:
    """A split of a corpus after every file of it was judged."""

    name: str
    """Its name."""
    cuts: list[Cut]
    """Good utterances, in order, at the rates of their files."""
    skipped: tuple[SkippedItem, ...]
    """Bad ones, and those that the corpus itself leaves out."""
    num_bad: int
    """Bad ones."""
    notes: tuple[str, ...]
    """What a person should know, a line each."""


def duration_tolerance(duration: Seconds) -> Seconds:
    """Difference between declared and decoded duration that rounding and codecs may cause."""
    return max(0.1, 0.01 * duration)


def summarise_skipped(skipped: Sequence[SkippedItem], num_names: int = 3) -> str:
    """One line: each reason with its count, its first names and the finding of the first.

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
    """Refuse a corpus with too many bad items.

    Args:
        skipped: Items left out.
        total: All items, including bad ones.
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
