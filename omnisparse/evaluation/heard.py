"""Features of a test set, kept in memory for the next model that hears the same way.

Several sizes of one net are measured on one test set: its audio is read once, and its features are
computed once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnisparse.data.audio import FloatArray
    from omnisparse.data.features import FeatureExtractor

MAX_BYTES = 1 << 29
"""Features that are kept, in bytes: about two hours of audio in frames of 30 ms."""


class Heard:
    """Features of the utterances of one test set.

    Args:
        max_bytes: What is above this is computed again each time.

    Attributes:
        spared_seconds: What reading and computing took that was not done again, of all models.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._extractor: FeatureExtractor | None = None
        self._key = ""
        self._kept: dict[int, tuple[FloatArray, float]] = {}
        self._bytes = 0
        self.spared_seconds = 0.0

    def features(
        self, extractor: FeatureExtractor, place: int, compute: Callable[[], FloatArray]
    ) -> FloatArray:
        """Features of an utterance.

        Args:
            extractor: Of the model. Features of another one are forgotten.
            place: Place of the utterance in the test set.
            compute: Computes them where they are not kept.

        Returns:
            [T, F].
        """
        if extractor is not self._extractor:
            self._extractor = extractor
            key = json.dumps(extractor.to_dict(), sort_keys=True)
            if key != self._key:
                self._key, self._kept, self._bytes = key, {}, 0
        if place in self._kept:
            found, seconds = self._kept[place]
            self.spared_seconds += seconds
            return found
        start = time.perf_counter()
        found = compute()
        if self._bytes + found.nbytes <= self._max_bytes:
            self._kept[place] = found, time.perf_counter() - start
            self._bytes += found.nbytes
        return found
