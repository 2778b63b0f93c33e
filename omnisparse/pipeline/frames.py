"""The frames of a training's utterances: from a store, or from their audio each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lhotse import CutSet

from omnisparse.config import RunConfig
from omnisparse.console import SECONDS_BEFORE_FIRST_LINE
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.live_features import FrameSource, LiveFeatures
from omnisparse.data.room import Recordings, RoomAugment


def frame_source(config: RunConfig, cuts: CutSet, stage: Callable[[str], None]) -> FrameSource:
    """The frames of ``cuts`` as a configuration asks for them.

    Raises:
        DataError: If too many utterances cannot be read, or noise or rooms cannot be used.
    """
    augmentation = config.data.augmentation
    cache = Path(config.corpus.root) / "features"
    shape = config.data.features
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BEFORE_FIRST_LINE:
            last = time.monotonic()
            stage(f"features of {done:,} of {total:,} utterances")

    if config.data.frames == "store":
        return FeatureStore.build(
            cuts,
            cache,
            num_bins=shape.num_bins,
            sampling_rate=shape.sampling_rate,
            kind=shape.kind,
            noise_probability=augmentation.noise_probability,
            noise_snr_db=augmentation.noise_snr_db,
            seed=config.seed,
            progress=tell,
        )
    noises = _recordings(augmentation.noise, "data.augmentation.noise", stage)
    responses = _recordings(augmentation.rooms, "data.augmentation.rooms", stage)
    return LiveFeatures.prepare(
        cuts,
        cache,
        num_bins=shape.num_bins,
        sampling_rate=shape.sampling_rate,
        kind=shape.kind,
        augment=RoomAugment(
            noises=noises,
            noise_probability=augmentation.noise_probability,
            noise_snr_db=augmentation.noise_snr_db,
            responses=responses,
            reverb_probability=augmentation.reverb_probability,
            seed=config.seed,
        ),
        progress=tell,
    )


def _recordings(folder: str | None, key: str, stage: Callable[[str], None]) -> Recordings | None:
    if folder is None:
        return None
    found = Recordings(Path(folder), key)
    stage(f"{key}: {len(found):,} recordings in {folder}")
    return found
