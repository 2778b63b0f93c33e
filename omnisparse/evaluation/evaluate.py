"""Runs a model over the utterances of a corpus and measures its word errors and its speed.

Utterances of similar length are decoded together. The features come from the model's own extractor,
so a user of the model gets the same results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnisparse.console import show_faults
from omnisparse.data.audio import FloatArray, read_samples
from omnisparse.data.batch import text_of
from omnisparse.data.pauses import cut_at_pauses
from omnisparse.errors import DataError
from omnisparse.evaluation.result import EvaluationResult, Said, score

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer

Transcribe = Callable[[FloatArray], str]
"""Samples [N] of one utterance at the extractor's rate -> its text."""

MAX_BATCH_UTTERANCES = 64

LONG_SECONDS = 60.0
"""Utterances that are longer are recognised one by one where the caller knows how."""


@dataclass(frozen=True, slots=True)
class _Utterance:
    """One utterance on its way to the model."""

    index: int
    """Its place in the corpus."""

    features: FloatArray
    """[T, F]."""


def evaluate(
    model: Any,
    cuts: Iterable[Any],
    *,
    extractor: FeatureExtractor,
    tokenizer: Tokenizer,
    beam: int = 1,
    batch_seconds: float = 120.0,
    transcribe: Transcribe | None = None,
    cut_above: float | None = None,
    transcribe_long: Transcribe | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Measures the word error rate of ``model`` on ``cuts``.

    Args:
        model: A speech model with ``decode``, on any device; it is run in eval mode.
        cuts: lhotse cuts with audio and one supervision each (a ``CutSet`` is one).
        extractor: The model's features.
        tokenizer: The model's tokens.
        beam: Hypotheses kept while decoding; 1 is greedy.
        batch_seconds: Audio decoded together, in seconds, padding included.
        transcribe: Recognises one utterance in place of the model's batched decoding (streaming,
            another runtime); ``beam`` and ``batch_seconds`` then mean nothing, nor does what
            follows.
        cut_above: Length in seconds above which an utterance is cut at pauses, by the rule of
            :mod:`omnisparse.data.pauses`; None for never.
        transcribe_long: Recognises an utterance of more than :data:`LONG_SECONDS` in place of the
            model's batched decoding, whose memory may grow with the square of the length.
        progress: Called with (utterances done, utterances in all).

    Raises:
        ValueError: If ``beam`` or ``batch_seconds`` is out of range.
        DataError: If there is no utterance or no reference word, or audio cannot be read.
    """
    show_faults()
    if beam < 1:
        raise ValueError(f"beam: expected at least 1, got {beam}")
    if not batch_seconds > 0:
        raise ValueError(f"batch_seconds: expected more than 0, got {batch_seconds}")
    ordered = list(cuts)
    check_scorable(ordered)
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    if transcribe is not None:
        found = _one_by_one(ordered, transcribe, extractor.sampling_rate)
    else:
        long = {
            index
            for index, cut in enumerate(ordered)
            if (cut_above is not None and cut.duration > cut_above)
            or (transcribe_long is not None and cut.duration > LONG_SECONDS)
        }
        decoder = _Decoder(model, extractor, tokenizer, beam, batch_seconds)
        found = chain(
            decoder.batched(ordered, [i for i in range(len(ordered)) if i not in long]),
            decoder.long_ones(ordered, sorted(long), cut_above, transcribe_long),
        )
    texts = [""] * len(ordered)
    try:
        with torch.inference_mode():
            for done, (index, text) in enumerate(found, start=1):
                texts[index] = text
                if progress is not None:
                    progress(done, len(ordered))
    finally:
        model.train(was_training)
    seconds = time.perf_counter() - start
    return score([said_in(cut) for cut in ordered], texts, seconds=seconds)


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Batched decoding of utterances."""

    model: Any
    extractor: FeatureExtractor
    tokenizer: Tokenizer
    beam: int
    batch_seconds: float

    def batched(self, cuts: Sequence[Any], chosen: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Yields (index of the cut, its text), utterances of similar length decoded together."""
        for batch in _batches(cuts, chosen, self.extractor, self.batch_seconds):
            texts = self.decode([utterance.features for utterance in batch])
            yield from zip((utterance.index for utterance in batch), texts, strict=True)

    def long_ones(
        self,
        cuts: Sequence[Any],
        chosen: Sequence[int],
        cut_above: float | None,
        transcribe: Transcribe | None,
    ) -> Iterator[tuple[int, str]]:
        """Yields (index of the cut, its text) of utterances that are too long to batch."""
        for index in chosen:
            samples = read_samples(cuts[index], self.extractor.sampling_rate)
            if transcribe is not None and cuts[index].duration > LONG_SECONDS:
                yield index, transcribe(samples)
                continue
            assert cut_above is not None
            features = features_of_pieces(self.extractor, samples, cuts[index], cut_above)
            count = max(1, int(self.batch_seconds / cut_above))
            texts = [
                text
                for first in range(0, len(features), count)
                for text in self.decode(features[first : first + count])
            ]
            yield index, " ".join(text for text in texts if text)

    def decode(self, features: Sequence[FloatArray]) -> list[str]:
        """Texts of [T_b, F] arrays."""
        device = next(self.model.parameters()).device
        padded, lengths = _pad(features, device)
        found = self.model.decode(padded, lengths, beam=self.beam)
        return [self.tokenizer.decode(ids) for ids in found]


def _one_by_one(
    cuts: Sequence[Any], transcribe: Transcribe, sampling_rate: int
) -> Iterator[tuple[int, str]]:
    """Yields (index of the cut, its text), one utterance after the other."""
    for index, cut in enumerate(cuts):
        samples = read_samples(cut, sampling_rate)
        try:
            yield index, transcribe(samples)
        except DataError as error:
            raise DataError(f"{cut.id}: {error}") from error


def check_scorable(cuts: Sequence[Any]) -> None:
    """Refuses a corpus without a word error rate, before any time is spent on it."""
    if not cuts:
        raise DataError("the manifest has no utterance: nothing to evaluate")
    if not any(text_of(cut).split() for cut in cuts):
        raise DataError("all transcripts of the manifest are empty: the WER is undefined")


def said_in(cut: Any) -> Said:
    """The facts about an utterance in the corpus."""
    speakers = dict.fromkeys(one.speaker for one in cut.supervisions if one.speaker)
    return Said(
        id=str(cut.id),
        reference=text_of(cut),
        seconds=float(cut.duration),
        speaker=" ".join(map(str, speakers)) or None,
    )


def _batches(
    cuts: Sequence[Any], chosen: Sequence[int], extractor: FeatureExtractor, batch_seconds: float
) -> Iterator[list[_Utterance]]:
    """Groups the chosen utterances by similar length, short ones first."""
    by_length = sorted(chosen, key=lambda index: (cuts[index].duration, index))
    batch: list[_Utterance] = []
    for index in by_length:
        padded_seconds = (len(batch) + 1) * float(cuts[index].duration)
        if batch and (padded_seconds > batch_seconds or len(batch) == MAX_BATCH_UTTERANCES):
            yield batch
            batch = []
        samples = read_samples(cuts[index], extractor.sampling_rate)
        batch.append(_Utterance(index=index, features=features_of(extractor, samples, cuts[index])))
    if batch:
        yield batch


def features_of(extractor: FeatureExtractor, samples: FloatArray, cut: Any) -> FloatArray:
    """Features of one utterance."""
    try:
        return extractor(samples)
    except ValueError as error:
        raise DataError(f"{cut.id}: {error}") from error


def features_of_pieces(
    extractor: FeatureExtractor, samples: FloatArray, cut: Any, cut_above: float
) -> list[FloatArray]:
    """Features of the pieces of one utterance that is too long; none where it has no voice."""
    pieces = cut_at_pauses(samples, extractor.sampling_rate, cut_above)
    return [features_of(extractor, samples[first:last], cut) for first, last in pieces]


def _pad(features: Sequence[FloatArray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads [T_b, F] arrays with zeros to [B, T, F], and gives their lengths [B]."""
    lengths = torch.tensor([len(array) for array in features], dtype=torch.int64)
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(np.asarray(array, dtype=np.float32)) for array in features],
        batch_first=True,
    )
    return padded.to(device), lengths.to(device)
