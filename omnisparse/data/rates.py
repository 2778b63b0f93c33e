"""Sampling rates: every file is brought to the rate of the features when it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from lhotse.augmentation import Resample
from lhotse.augmentation.transform import AudioTransform
from lhotse.utils import fastcopy

from omnisparse.data.resampling import StreamingResampler, resampling_ratio

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut


@dataclass
class NearResample(Resample):  # type: ignore[misc]
    """Resampling between rates without a common divisor, at a ratio that is close enough.

    lhotse's kernels of 44,101 Hz would fill gigabytes.
    """

    def __call__(self, samples: Any, *args: Any, **kwargs: Any) -> Any:
        """Samples at the target rate, [C, M], of samples [C, N]."""
        rate, target = self.source_sampling_rate, self.target_sampling_rate
        channels = np.atleast_2d(np.asarray(samples, dtype=np.float32))
        resampled = [
            StreamingResampler(rate, target).accept(channel, final=True) for channel in channels
        ]
        wanted = -(-channels.shape[1] * target // rate)
        return np.stack([np.pad(one, (0, max(0, wanted - len(one))))[:wanted] for one in resampled])


# Manifests never name it.
AudioTransform.KNOWN_TRANSFORMS.pop(NearResample.__name__, None)


def at_rate(cut: Cut, sampling_rate: int) -> Any:
    """The same utterance at another rate (Hz), changed when its audio is read."""
    if cut.sampling_rate == sampling_rate:
        return cut
    changed: Any = cut.resample(sampling_rate)
    rate, target = cut.sampling_rate, sampling_rate
    recording = getattr(changed, "recording", None)
    if (
        recording is None
        or resampling_ratio(rate, target)[0] * target == rate * (resampling_ratio(rate, target)[1])
    ):
        return changed
    transforms = [*recording.transforms[:-1], NearResample(rate, target)]
    return fastcopy(changed, recording=fastcopy(recording, transforms=transforms))


def resample(cuts: CutSet, sampling_rate: int) -> CutSet:
    """The same utterances at ``sampling_rate`` (Hz), changed when their audio is read."""
    from lhotse import CutSet

    return CutSet.from_cuts(at_rate(cut, sampling_rate) for cut in cuts)


def describe_rates(cuts: Iterable[Cut], sampling_rate: int) -> list[str]:
    """One line for each rate that is not ``sampling_rate`` (Hz): how many, and what is missing."""
    listed = list(cuts)
    lines = []
    for rate, count in sorted(Counter(cut.sampling_rate for cut in listed).items()):
        if rate == sampling_rate:
            continue
        line = f"{count:,} of {len(listed):,} utterances have {rate} Hz, resampled to"
        line += f" {sampling_rate} Hz"
        if rate < sampling_rate:
            line += f"; narrow-band: nothing above {rate // 2} Hz is in them"
        lines.append(line)
    return lines
