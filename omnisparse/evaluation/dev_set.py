"""A test set held in memory, in small batches, for measuring many models on it.

Audio is read and features are computed once; after that a model costs its forward passes only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from omnisparse.data.audio import read_samples
from omnisparse.data.batch import Batch, collate
from omnisparse.errors import DataError
from omnisparse.evaluation.evaluate import features_of, reference_of
from omnisparse.evaluation.wer import ErrorCounts, word_errors

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer


class DevSet:
    """Utterances in batches of similar length, called items.

    Args:
        cuts: lhotse cuts with audio and one supervision each; those without words are left out.
        extractor: The models' features.
        tokenizer: The models' tokens.
        utterances_per_item: Utterances that are computed, and chosen, together.
        progress: Called with (utterances read, utterances in all).

    Raises:
        DataError: If no utterance has words, or audio cannot be read.
    """

    def __init__(
        self,
        cuts: Iterable[Any],
        *,
        extractor: FeatureExtractor,
        tokenizer: Tokenizer,
        utterances_per_item: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        spoken = [cut for cut in cuts if reference_of(cut).split()]
        if not spoken:
            raise DataError("the manifest holds no utterance with words: nothing to search on")
        spoken.sort(key=lambda cut: (float(cut.duration), cut.id))
        self.tokenizer = tokenizer
        self.batches: list[Batch] = []
        self.references: list[list[str]] = []
        heard = hashlib.sha256()
        for start in range(0, len(spoken), utterances_per_item):
            chosen = spoken[start : start + utterances_per_item]
            features, references = [], [reference_of(cut) for cut in chosen]
            for cut in chosen:
                samples = read_samples(cut, extractor.sampling_rate)
                heard.update(hashlib.sha256(samples.tobytes()).digest())
                features.append(features_of(extractor, samples, cut))
            tokens = [tokenizer.encode(text) for text in references]
            self.batches.append(collate(chosen, features, tokens, range(len(chosen))))
            self.references.append(references)
            if progress is not None:
                progress(start + len(chosen), len(spoken))
        self._heard = heard.hexdigest()

    @property
    def num_items(self) -> int:
        """Batches."""
        return len(self.batches)

    @property
    def num_utterances(self) -> int:
        """Utterances of all items."""
        return sum(len(batch) for batch in self.batches)

    def digest(self) -> str:
        """A name of the utterances: their order, their words and their audio, wherever it lies."""
        pairs = [
            (list(batch.ids), references)
            for batch, references in zip(self.batches, self.references, strict=True)
        ]
        return hashlib.sha256(repr((pairs, self._heard)).encode()).hexdigest()[:16]

    def tokens(self) -> list[float]:
        """Units of the label loss of each item: tokens and one end per utterance."""
        return [float((batch.token_lengths + 1).sum()) for batch in self.batches]

    def words(self) -> list[float]:
        """Reference words of each item."""
        return [float(sum(len(text.split()) for text in texts)) for texts in self.references]

    @torch.no_grad()
    def losses(self, model: Any, items: Sequence[int]) -> list[float]:
        """Label loss of each item, summed over its tokens; the model must be in eval mode."""
        device = next(model.parameters()).device
        values = []
        for item in items:
            batch = self.batches[item].to(device)
            output = model(batch.features, batch.feature_lengths, batch.tokens, batch.token_lengths)
            values.append(float(output.label_loss_sum))
        return values

    def errors(self, model: Any, items: Sequence[int]) -> list[list[ErrorCounts]]:
        """Word errors of each utterance of each item, recognised greedily, in eval mode."""
        device = next(model.parameters()).device
        counts = []
        for item in items:
            batch = self.batches[item].to(device)
            found = model.decode(batch.features, batch.feature_lengths)
            texts = [self.tokenizer.decode(ids) for ids in found]
            counts.append(word_errors(self.references[item], texts))
        return counts
