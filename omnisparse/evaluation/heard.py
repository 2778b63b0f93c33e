"""Features of a test set, kept in memory for the next model that hears the same way.

Several sizes of one net are measured on one test set: its audio is read once, and its features are
computed once.
"""

from __future__ import annotations

import json
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
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._extractor: FeatureExtractor | None = None
        self._key = ""
        self._kept: dict[int, FloatArray] = {}
        self._bytes = 0

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
        found = self._kept.get(place)
        if found is None:
            found = compute()
            if self._bytes + found.nbytes <= self._max_bytes:
                self._kept[place] = found
                self._bytes += found.nbytes
        return found
