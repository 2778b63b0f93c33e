"""Runs a model over the utterances of a corpus and measures its word errors and its speed.

Utterances of similar length are decoded together. The features come from the model's own extractor,
so a user of the model gets the same results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnisparse.console import show_faults
from omnisparse.data.audio import FloatArray, read_samples
from omnisparse.data.batch import text_of
from omnisparse.data.pauses import cut_at_pauses
from omnisparse.errors import DataError
from omnisparse.evaluation.heard import Heard
from omnisparse.evaluation.result import EvaluationResult, Said, score

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer

Transcribe = Callable[[FloatArray], str]
"""Samples [N] of one utterance at the extractor's rate -> its text."""

MAX_BATCH_UTTERANCES = 64

LONG_SECONDS = 60.0
"""Utterances that are longer are recognised one by one where the caller knows how."""


Task = tuple[int, ...]
"""Places in the corpus of utterances that are recognised together; a long one is alone."""

Found = list[tuple[int, str]]
"""Places in the corpus, and the texts of these utterances."""

Spread = Callable[[Sequence[Task], Callable[[Task], Found]], Iterable[Found]]
"""Does tasks by a function, or elsewhere by its equal, and gives what was found in their order."""


def in_turn(tasks: Sequence[Task], run: Callable[[Task], Found]) -> Iterable[Found]:
    """One task after the other, here."""
    return map(run, tasks)


def evaluate(
    decoder: Decoder,
    cuts: Iterable[Any],
    *,
    progress: Callable[[int, int], None] | None = None,
    spread: Spread = in_turn,
) -> EvaluationResult:
    """Measures the word error rate of a model on ``cuts``.

    Args:
        decoder: Recognises them.
        cuts: lhotse cuts with audio and one supervision each (a ``CutSet`` is one).
        progress: Called with (utterances done, utterances in all).
        spread: Does the tasks, for instance on several processes. What is recognised together does
            not depend on it.

    Raises:
        DataError: If there is no utterance or no reference word, or audio cannot be read.
    """
    show_faults()
    ordered = list(cuts)
    check_scorable(ordered)
    # A model whose features are there is as slow as if it had computed them.
    start = time.perf_counter() + decoder.spared_seconds
    texts = [""] * len(ordered)
    done = 0
    for found in spread(decoder.tasks(ordered), lambda task: decoder.run(ordered, task)):
        for index, text in found:
            texts[index] = text
            done += 1
            if progress is not None:
                progress(done, len(ordered))
    seconds = time.perf_counter() + decoder.spared_seconds - start
    return score([said_in(cut) for cut in ordered], texts, seconds=seconds)


class Decoder:
    """Recognises the utterances of a corpus, several at once where they are short.

    Args:
        model: A speech model with ``decode``, on any device; it is run in eval mode.
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
        heard: Keeps the features of short utterances for other models; None keeps nothing.

    Raises:
        ValueError: If ``beam`` or ``batch_seconds`` is out of range.
    """

    def __init__(
        self,
        model: Any,
        extractor: FeatureExtractor,
        tokenizer: Tokenizer,
        *,
        beam: int = 1,
        batch_seconds: float = 120.0,
        transcribe: Transcribe | None = None,
        cut_above: float | None = None,
        transcribe_long: Transcribe | None = None,
        heard: Heard | None = None,
    ) -> None:
        if beam < 1:
            raise ValueError(f"beam: expected at least 1, got {beam}")
        if not batch_seconds > 0:
            raise ValueError(f"batch_seconds: expected more than 0, got {batch_seconds}")
        self.model, self.extractor, self.tokenizer = model, extractor, tokenizer
        self.beam, self.batch_seconds = beam, batch_seconds
        self.transcribe, self.transcribe_long = transcribe, transcribe_long
        self.cut_above = cut_above
        self._heard = heard

    @property
    def spared_seconds(self) -> float:
        """What features would have taken that were computed for another model."""
        return 0.0 if self._heard is None else self._heard.spared_seconds

    def tasks(self, cuts: Sequence[Any]) -> list[Task]:
        """What is recognised together: utterances of similar length, short ones first."""
        if self.transcribe is not None:
            return [(index,) for index in range(len(cuts))]
        long = {index for index, cut in enumerate(cuts) if self._is_long(cut)}
        short = [index for index in range(len(cuts)) if index not in long]
        batches: list[list[int]] = []
        for index in sorted(short, key=lambda index: (cuts[index].duration, index)):
            fits = batches and len(batches[-1]) < MAX_BATCH_UTTERANCES
            seconds = float(cuts[index].duration)
            if fits and (len(batches[-1]) + 1) * seconds <= self.batch_seconds:
                batches[-1].append(index)
            else:
                batches.append([index])
        return [*map(tuple, batches), *((index,) for index in sorted(long))]

    def _is_long(self, cut: Any) -> bool:
        if self.cut_above is not None and cut.duration > self.cut_above:
            return True
        return self.transcribe_long is not None and cut.duration > LONG_SECONDS

    def run(self, cuts: Sequence[Any], task: Task) -> Found:
        """The texts of a task.

        Raises:
            DataError: If audio cannot be read; names the utterance.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return self._run(cuts, task)
        finally:
            self.model.train(was_training)

    def _run(self, cuts: Sequence[Any], task: Task) -> Found:
        first = cuts[task[0]]
        if self.transcribe is not None:
            try:
                return [(task[0], self.transcribe(self._samples(first)))]
            except DataError as error:
                raise DataError(f"{first.id}: {error}") from error
        if self._is_long(first):
            return [(task[0], self._long(self._samples(first), first))]
        features = [self._features(cuts[index], index) for index in task]
        return list(zip(task, self._decode(features), strict=True))

    def _samples(self, cut: Any) -> FloatArray:
        return read_samples(cut, self.extractor.sampling_rate)

    def _features(self, cut: Any, place: int) -> FloatArray:
        """Features of one utterance that is not long."""

        def compute() -> FloatArray:
            return features_of(self.extractor, self._samples(cut), cut)

        if self._heard is None:
            return compute()
        return self._heard.features(self.extractor, place, compute)

    def _long(self, samples: FloatArray, cut: Any) -> str:
        """The text of an utterance that is too long to batch."""
        if self.transcribe_long is not None and cut.duration > LONG_SECONDS:
            return self.transcribe_long(samples)
        assert self.cut_above is not None
        features = features_of_pieces(self.extractor, samples, cut, self.cut_above)
        count = max(1, int(self.batch_seconds / self.cut_above))
        texts = [
            text
            for first in range(0, len(features), count)
            for text in self._decode(features[first : first + count])
        ]
        return " ".join(text for text in texts if text)

    def _decode(self, features: Sequence[FloatArray]) -> list[str]:
        """Texts of [T_b, F] arrays."""
        device = next(self.model.parameters()).device
        padded, lengths = _pad(features, device)
        found = self.model.decode(padded, lengths, beam=self.beam)
        return [self.tokenizer.decode(ids) for ids in found]


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
