"""Identity of a corpus by its content, to compare corpora independent of file names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omnisparse.data.audio import recordings_of
from omnisparse.data.content import ContentCache

if TYPE_CHECKING:
    from lhotse.cut import Cut

_DIGITS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusIdentity:
    """Content of a corpus: equal for the same audio and transcripts in the same order."""

    utterances: int
    """Utterances."""
    seconds: float
    """Audio, in seconds."""
    ids: str
    """Digest of the names of the utterances, in order."""
    texts: str
    """Digest of their transcripts, in order."""
    audio: str
    """Digest of their samples, in order, by the content of their files."""

    def differences(self, other: CorpusIdentity) -> list[str]:
        """Differences of ``other`` in words; empty if the two corpora are equal."""
        found = []
        if self.utterances != other.utterances:
            found.append(f"{other.utterances:,} utterances instead of {self.utterances:,}")
        elif self.ids != other.ids:
            found.append("other utterances or another order")
        if self.texts != other.texts:
            found.append("other transcripts")
        if self.audio != other.audio:
            found.append(f"other audio ({other.seconds:.1f} s; {self.seconds:.1f} s before)")
        return found


def identify(cuts: Iterable[Cut], cache: ContentCache | None = None) -> CorpusIdentity:
    """The identity of utterances; files with known size and time are not read again.

    Args:
        cuts: Utterances with one supervision each.
        cache: Cache of file digests; None for the user's cache.
    """
    listed = list(cuts)
    ids, texts, audio = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for cut, row in zip(listed, sound_rows(listed, cache), strict=True):
        ids.update(json.dumps(cut.id).encode())
        texts.update(json.dumps([one.text for one in cut.supervisions]).encode())
        audio.update(json.dumps(row, default=str).encode())
    return CorpusIdentity(
        utterances=len(listed),
        seconds=round(float(sum(cut.duration for cut in listed)), 3),
        ids=ids.hexdigest()[:_DIGITS],
        texts=texts.hexdigest()[:_DIGITS],
        audio=audio.hexdigest()[:_DIGITS],
    )


def sound_rows(cuts: Sequence[Cut], cache: ContentCache | None = None) -> Iterator[list[Any]]:
    """For each utterance, everything that its samples depend on: file contents, not file names.

    Args:
        cuts: Utterances.
        cache: Cache of file digests; None for the user's cache.

    Yields:
        A JSON-serialisable list.
    """
    paths = {
        str(source.source)
        for cut in cuts
        for recording in recordings_of(cut)
        for source in recording.sources
        if source.type == "file"
    }
    digests = (cache or ContentCache()).digests(paths)
    for cut in cuts:
        recordings = recordings_of(cut)
        if len(recordings) == 1 and recordings[0] is getattr(cut, "recording", None):
            data: Any = cut
            row = [data.start, data.duration, data.channel, *_recording_row(recordings[0], digests)]
        else:  # a mixture: its tracks have offsets and loudness
            row = [_without_words(cut.to_dict(), digests)]
        yield row


def _recording_row(recording: Any, digests: dict[str, str]) -> list[Any]:
    sources = [
        [source.type, source.channels, digests.get(str(source.source), str(source.source))]
        for source in recording.sources
    ]
    transforms = [
        transform if isinstance(transform, dict) else transform.to_dict()
        for transform in recording.transforms or ()
    ]
    return [
        recording.sampling_rate,
        recording.num_samples,
        sources,
        [_without_words(transform, digests) for transform in transforms],
    ]


def _without_words(record: Any, digests: dict[str, str]) -> Any:
    """A record of lhotse without names and transcripts, with digests instead of file names."""
    if isinstance(record, list):
        return [_without_words(value, digests) for value in record]
    if not isinstance(record, dict):
        return record
    kept = {
        key: _without_words(value, digests)
        for key, value in record.items()
        if key not in {"supervisions", "custom", "id"}
    }
    source = kept.get("source")
    if isinstance(source, str) and kept.get("type") == "file":
        kept["source"] = digests.get(source, source)
    return kept
