"""A test set held in memory, in small batches, for measuring many models on it.

Audio is read and features are computed once; after that a model costs only its forward passes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from omnisparse.data.audio import read_samples
from omnisparse.data.batch import Batch, collate, text_of
from omnisparse.errors import DataError
from omnisparse.evaluation.evaluate import features_of
from omnisparse.evaluation.wer import ErrorCounts, word_errors

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _Item:
    """Utterances that are computed together."""

    spoken: Batch
    """The utterances with words; the label loss is computed on these."""
    silent: Batch | None
    """The utterances without words; a model may recognise words in them."""
    references: list[str]
    """Transcripts of all utterances, those with words first."""


class DevSet:
    """Utterances in batches of similar length, called items.

    Utterances without words are also recognised, because words recognised in silence count as
    insertions. The label loss is computed on the others.

    Args:
        cuts: lhotse cuts with audio and one supervision each.
        extractor: The models' features.
        tokenizer: The models' tokens.
        utterances_per_item: Utterances with words that are computed and selected together; those
            without words are spread evenly over the items.
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
        every = sorted(cuts, key=lambda cut: (float(cut.duration), cut.id))
        spoken = [cut for cut in every if text_of(cut).split()]
        silent = [cut for cut in every if not text_of(cut).split()]
        if not spoken:
            raise DataError("the manifest has no utterance with words, which a search needs")
        self.tokenizer = tokenizer
        self._extractor = extractor
        self._audio = hashlib.sha256()
        self._items: list[_Item] = []
        starts = range(0, len(spoken), utterances_per_item)
        done = 0
        for number, start in enumerate(starts):
            chosen = spoken[start : start + utterances_per_item]
            quiet = silent[number :: len(starts)]
            self._items.append(
                _Item(
                    spoken=self._batch(chosen),
                    silent=self._batch(quiet) if quiet else None,
                    references=[text_of(cut) for cut in (*chosen, *quiet)],
                )
            )
            done += len(chosen) + len(quiet)
            if progress is not None:
                progress(done, len(every))

    def _batch(self, cuts: Sequence[Any]) -> Batch:
        """Reads utterances."""
        features = []
        for cut in cuts:
            samples = read_samples(cut, self._extractor.sampling_rate)
            self._audio.update(hashlib.sha256(samples.tobytes()).digest())
            features.append(features_of(self._extractor, samples, cut))
        tokens = [self.tokenizer.encode(text_of(cut)) for cut in cuts]
        return collate(cuts, features, tokens, range(len(cuts)))

    @property
    def references(self) -> list[list[str]]:
        """Transcripts of the corpus, by item."""
        return [item.references for item in self._items]

    @property
    def num_items(self) -> int:
        """Batches."""
        return len(self._items)

    @property
    def num_utterances(self) -> int:
        """Utterances of all items."""
        return sum(map(len, self.references))

    def utterances_of(self, items: Iterable[int]) -> int:
        """Utterances of some items."""
        return sum(len(self._items[item].references) for item in items)

    def digest(self) -> str:
        """A digest of the utterances: order, words and audio, independent of file names."""
        pairs = [(_ids_of(item), item.references) for item in self._items]
        text = repr((pairs, self._audio.hexdigest()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def tokens(self) -> list[float]:
        """Units of the label loss of each item: tokens, plus one end per utterance with words."""
        return [float((item.spoken.token_lengths + 1).sum()) for item in self._items]

    def words(self) -> list[float]:
        """Reference words of each item."""
        return [float(sum(len(text.split()) for text in texts)) for texts in self.references]

    @torch.no_grad()
    def losses(self, model: Any, items: Sequence[int]) -> list[float]:
        """Label loss of each item, summed over its tokens; the model must be in eval mode."""
        device = next(model.parameters()).device
        values = []
        for item in items:
            batch = self._items[item].spoken.to(device)
            output = model(batch.features, batch.feature_lengths, batch.tokens, batch.token_lengths)
            values.append(float(output.label_loss_sum))
        return values

    def transcripts(self, model: Any, items: Sequence[int]) -> list[list[str]]:
        """Transcripts of each utterance of each item, recognised greedily, in eval mode."""
        device = next(model.parameters()).device
        texts = []
        for item in map(self._items.__getitem__, items):
            found: list[str] = []
            for part in filter(None, (item.spoken, item.silent)):
                batch = part.to(device)
                ids = model.decode(batch.features, batch.feature_lengths)
                found += map(self.tokenizer.decode, ids)
            texts.append(found)
        return texts

    def errors(self, model: Any, items: Sequence[int]) -> list[list[ErrorCounts]]:
        """Word errors of each utterance of each item, recognised greedily, in eval mode."""
        found = self.transcripts(model, items)
        return [
            word_errors(self.references[item], texts)
            for item, texts in zip(items, found, strict=True)
        ]


def _ids_of(item: _Item) -> list[str]:
    return [*item.spoken.ids, *(item.silent.ids if item.silent is not None else ())]
