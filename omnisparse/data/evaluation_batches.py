"""Batches of a test set: one pass, no order to save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from omnisparse.data.audio import FloatArray, read_samples
from omnisparse.data.batch import Batch, collate, text_of
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.live_features import FrameSource
from omnisparse.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut


class EvaluationBatches:
    """One pass over a test set: shortest first, nothing masked, no order to save.

    Args:
        cuts: Utterances.
        extractor: Computes, normalises and stacks features.
        tokenizer: Encodes the transcripts.
        batch_seconds: Audio of one batch, padding included, in seconds; an utterance that is longer
            makes a batch of its own.
        max_batch_size: Most utterances of one batch.
        store: Source of the frames; without it they are computed from audio.
        rank: Number of this process.
        world_size: Number of processes; each takes every `world_size`-th batch.
    """

    def __init__(
        self,
        cuts: CutSet,
        *,
        extractor: FeatureExtractor,
        tokenizer: Tokenizer,
        batch_seconds: float = 300.0,
        max_batch_size: int = 64,
        store: FrameSource | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size={world_size}), got {rank}")
        self._extractor = extractor
        self._tokenizer = tokenizer
        self._store = store
        kept = cuts if store is None else store.available(cuts)
        ordered = sorted(kept, key=lambda cut: (cut.duration, cut.id))
        self._batches = _pack(ordered, batch_seconds, max_batch_size)[rank::world_size]

    @property
    def texts(self) -> dict[str, str]:
        """Transcripts by id, of the utterances of this process."""
        return {cut.id: text_of(cut) for batch in self._batches for cut in batch}

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this process.

        Raises:
            DataError: If audio cannot be read. No utterance is left out: the error rate would
                change.
        """
        for cuts in self._batches:
            features = [self._prepare(cut) for cut in cuts]
            tokens = [self._tokenizer.encode(text_of(cut)) for cut in cuts]
            yield collate(cuts, features, tokens, range(len(cuts)))

    def _prepare(self, cut: Cut) -> FloatArray:
        if self._store is None:
            return self._extractor(read_samples(cut, self._extractor.sampling_rate))
        frames = self._store.frames(cut.id)
        return self._extractor.stack_frames(self._extractor.normalise(frames))


def _pack(cuts: Sequence[Cut], batch_seconds: float, max_batch_size: int) -> list[list[Cut]]:
    """Cut a list sorted by length into batches."""
    batches: list[list[Cut]] = []
    for cut in cuts:
        fits = (
            batches
            and len(batches[-1]) < max_batch_size
            and cut.duration * (len(batches[-1]) + 1) <= batch_seconds
        )
        if fits:
            batches[-1].append(cut)
        else:
            batches.append([cut])
    return batches
