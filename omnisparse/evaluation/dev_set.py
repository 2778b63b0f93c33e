"""A test set held in memory, in small batches, for measuring many models on it.

Audio is read and features are computed once; after that a model costs only its forward passes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from omnisparse.data.audio import read_samples
from omnisparse.data.batch import Batch, collate, text_of
from omnisparse.errors import DataError
from omnisparse.evaluation.evaluate import features_of, features_of_pieces, said_in
from omnisparse.evaluation.notes import corpus_notes, length_note
from omnisparse.evaluation.wer import ErrorCounts, word_errors

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _Item:
    """Utterances that are computed together."""

    spoken: Batch
    """Those with words: what the label loss is of."""
    references: list[str]
    """Of all, those with words first."""
    heard: list[tuple[list[int], Batch]]
    """What is decoded: batches, with the place among ``references`` of each row. An utterance that
    is too long has several rows, one a piece."""
    ids: tuple[str, ...]
    """Names, in the order of ``references``."""
    speakers: tuple[str | None, ...]
    """In the order of ``references``."""

    def to(self, device: torch.device) -> _Item:
        """The item on a device; a batch that is both spoken and heard is there once."""
        spoken = self.spoken.to(device)
        heard = [
            (places, spoken if batch is self.spoken else batch.to(device))
            for places, batch in self.heard
        ]
        return replace(self, spoken=spoken, heard=heard)


class DevSet:
    """Utterances in batches of similar length, called items.

    Utterances without words are also recognised, because words recognised in silence count as
    insertions. The label loss is computed on the others.

    Args:
        cuts: lhotse cuts with audio and one supervision each.
        extractor: The models' features.
        tokenizer: The models' tokens.
        utterances_per_item: Utterances with words that are computed, and chosen, together; those
            without are spread evenly over the items.
        cut_above: Length in seconds above which an utterance is recognised in pieces, cut at
            pauses; None for never. Its label loss is of the whole.
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
        cut_above: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        every = sorted(cuts, key=lambda cut: (float(cut.duration), cut.id))
        self._seconds = [float(cut.duration) for cut in every]
        spoken = [cut for cut in every if text_of(cut).split()]
        silent = [cut for cut in every if not text_of(cut).split()]
        if not spoken:
            raise DataError("the manifest has no utterance with words, which a search needs")
        self.tokenizer = tokenizer
        self._extractor, self._cut_above = extractor, cut_above
        audio = hashlib.sha256()
        self._items: list[_Item] = []
        self._on_device: dict[tuple[torch.device, int], _Item] = {}
        starts = range(0, len(spoken), utterances_per_item)
        done = 0
        for number, start in enumerate(starts):
            chosen = spoken[start : start + utterances_per_item]
            quiet = silent[number :: len(starts)]
            self._items.append(self._item(chosen, quiet, audio))
            done += len(chosen) + len(quiet)
            if progress is not None:
                progress(done, len(every))
        self._audio = audio.hexdigest()

    def _item(self, chosen: Sequence[Any], quiet: Sequence[Any], digest: Any) -> _Item:
        """Reads utterances with words, and such without; the digest learns of their audio."""
        every = [*chosen, *quiet]
        audio = [read_samples(cut, self._extractor.sampling_rate) for cut in every]
        for samples in audio:
            digest.update(hashlib.sha256(samples.tobytes()).digest())
        features = [
            features_of(self._extractor, s, cut) for s, cut in zip(audio, every, strict=True)
        ]
        tokens = [self.tokenizer.encode(text_of(cut)) for cut in every]
        count, limit = len(chosen), self._cut_above or float("inf")
        spoken = collate(chosen, features[:count], tokens[:count], range(count))
        heard: list[tuple[list[int], Batch]] = []
        for places in (range(count), range(count, len(every))):
            short = [place for place in places if every[place].duration <= limit]
            if len(short) == count and places.start == 0:
                heard.append((short, spoken))
            elif short:
                parts = ([every[i] for i in short], [features[i] for i in short])
                heard.append((short, collate(*parts, [[]] * len(short), short)))
        for place, cut in enumerate(every):
            if cut.duration > limit:
                pieces = features_of_pieces(self._extractor, audio[place], cut, limit)
                rows = [place] * len(pieces)
                if rows:
                    heard.append((rows, collate([cut] * len(rows), pieces, [[]] * len(rows), rows)))
        said = [said_in(cut) for cut in every]
        return _Item(
            spoken,
            [one.reference for one in said],
            heard,
            tuple(cut.id for cut in every),
            tuple(one.speaker for one in said),
        )

    @property
    def references(self) -> list[list[str]]:
        """Transcripts of the corpus, by item."""
        return [item.references for item in self._items]

    @property
    def speakers(self) -> list[str | None]:
        """The speaker of each utterance, item after item."""
        return [speaker for item in self._items for speaker in item.speakers]

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

    def cutting(self) -> dict[str, float]:
        """``cut_above`` where an utterance is longer: what is recognised depends on it."""
        limit = self._cut_above
        if limit is None or all(seconds <= limit for seconds in self._seconds):
            return {}
        return {"cut_above": limit}

    def notes(self, trained_seconds: float | None, *, streams: bool) -> list[str]:
        """What may spoil rates on these utterances, a line each.

        Args:
            trained_seconds: Longest utterance that the models were trained on; None if unknown.
            streams: Whether they recognise audio while it arrives.
        """
        references = [text for item in self.references for text in item]
        long = length_note(
            self._seconds, trained_seconds, cut_above=self._cut_above, streams=streams
        )
        notes = corpus_notes(references, [self.tokenizer], self.speakers)
        return [*notes, *([long] if long else [])]

    def digest(self) -> str:
        """A name of the utterances: their order, their words and their audio, wherever it lies."""
        pairs = [(list(item.ids), item.references) for item in self._items]
        text = repr((pairs, self._audio))
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
            batch = self._there(item, device).spoken
            output = model(batch.features, batch.feature_lengths, batch.tokens, batch.token_lengths)
            values.append(output.label_loss_sum)
        # Read at the end: the device has work while the next items are prepared.
        return [float(value) for value in torch.stack(values).tolist()] if values else []

    def _there(self, item: int, device: torch.device) -> _Item:
        """An item on a device, which keeps it for the models that follow."""
        if device.type == "cpu":
            return self._items[item]
        found = self._on_device.get((device, item))
        if found is None:
            found = self._on_device[device, item] = self._items[item].to(device)
        return found

    def transcripts(self, model: Any, items: Sequence[int]) -> list[list[str]]:
        """Transcripts of each utterance of each item, recognised greedily, in eval mode."""
        device = next(model.parameters()).device
        texts = []
        for item in (self._there(number, device) for number in items):
            found: list[list[str]] = [[] for _ in item.references]
            for places, batch in item.heard:
                ids = model.decode(batch.features, batch.feature_lengths)
                for place, text in zip(places, map(self.tokenizer.decode, ids), strict=True):
                    found[place] += [text] if text else []
            texts.append([" ".join(parts) for parts in found])
        return texts

    def errors(self, model: Any, items: Sequence[int]) -> list[list[ErrorCounts]]:
        """Word errors of each utterance of each item, recognised greedily, in eval mode."""
        found = self.transcripts(model, items)
        return [
            word_errors(self.references[item], texts)
            for item, texts in zip(items, found, strict=True)
        ]
