"""Utterances as lhotse cuts, the form in which all of the package passes them on."""

from __future__ import annotations

from typing import Any

from omnisparse.data.validation import Hertz, Item


def make_cut(
    item: Item,
    *,
    num_samples: int,
    recording_samples: int,
    sampling_rate: Hertz,
    num_channels: int,
) -> Any:
    """A lhotse cut of ``item`` with one supervision that spans it.

    Args:
        item: The utterance; its channels become those of the cut.
        num_samples: Samples of the utterance.
        recording_samples: Samples of the whole file.
        sampling_rate: Of the file, in Hz.
        num_channels: Of the file.

    Returns:
        A MonoCut, or a MultiCut where several channels are heard.
    """
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
    from lhotse.cut import MultiCut

    duration = num_samples / sampling_rate
    every = list(range(num_channels))
    recording = Recording(
        id=item.id,
        sources=[AudioSource(type="file", channels=every, source=str(item.path))],
        sampling_rate=sampling_rate,
        num_samples=recording_samples,
        duration=recording_samples / sampling_rate,
    )
    heard = every if item.channels is None else list(item.channels)
    channel: Any = heard[0] if len(heard) == 1 else heard
    supervision = SupervisionSegment(
        id=item.id,
        recording_id=item.id,
        start=0.0,
        duration=duration,
        channel=channel,
        text=item.text,
        speaker=item.speaker,
    )
    fields: dict[str, Any] = {"id": item.id, "start": item.offset, "duration": duration}
    fields |= {"channel": channel, "supervisions": [supervision], "recording": recording}
    return MonoCut(**fields) if len(heard) == 1 else MultiCut(**fields)
