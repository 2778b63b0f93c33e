"""The batch that models and methods compute on.

Legend: B batch, T stacked frames, F features, U tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from omnisparse.data.features import FloatArray

if TYPE_CHECKING:
    from lhotse.cut import Cut


@dataclass(frozen=True, slots=True)
class Batch:
    """The data of one process in one step."""

    features: Tensor
    """[B, T, F] float32, 0 where padded."""
    feature_lengths: Tensor
    """[B] int64 on the CPU, where shapes are decided, in stacked frames."""
    tokens: Tensor
    """[B, U] int64, padded with 0."""
    token_lengths: Tensor
    """[B] int64 on the CPU."""
    ids: tuple[str, ...]
    """Names of the utterances."""
    positions: Tensor
    """[B] int64 on the CPU: place of each utterance in the global batch of the step, over all
    processes."""
    audio_seconds: float
    """Audio of these utterances, padding excluded."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Transcripts by id."""
    is_copy: bool = False
    """Whether these utterances are copies that count in another process. If a batch is smaller than
    the number of processes, some get copies, because all processes must synchronise."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch with features and tokens on ``device``; lengths stay, so that none waits."""
        return replace(
            self,
            features=self.features.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
        )

    def select(self, index: Tensor) -> Batch:
        """Some utterances of the batch, without padding that is no longer needed.

        Args:
            index: [N] int64 on the CPU, rows in the wanted order, at least one.
        """
        feature_lengths = self.feature_lengths[index]
        token_lengths = self.token_lengths[index]
        longest, most_tokens = max(feature_lengths.tolist()), max(token_lengths.tolist())
        share = sum(feature_lengths.tolist()) / sum(self.feature_lengths.tolist())
        ids = tuple(self.ids[row] for row in index.tolist())
        positions = self.positions[index]
        index = index.to(self.features.device, non_blocking=True)
        return Batch(
            features=self.features[index, :longest],
            feature_lengths=feature_lengths,
            tokens=self.tokens[index, :most_tokens],
            token_lengths=token_lengths,
            ids=ids,
            positions=positions,
            audio_seconds=self.audio_seconds * share,
            texts={name: self.texts[name] for name in ids if name in self.texts},
            is_copy=self.is_copy,
        )

    def __len__(self) -> int:
        return len(self.ids)


def collate(
    cuts: Sequence[Cut],
    features: Sequence[FloatArray],
    tokens: Sequence[Sequence[int]],
    positions: Sequence[int],
    *,
    is_copy: bool = False,
) -> Batch:
    """Pad utterances into one batch.

    Args:
        cuts: The utterances.
        features: [T_b, F] of each.
        tokens: [U_b] of each.
        positions: Places in the global batch.
        is_copy: As :class:`Batch` has it.
    """
    longest = max(len(one) for one in features)
    most_tokens = max(len(one) for one in tokens)
    padded = np.zeros((len(cuts), longest, features[0].shape[1]), dtype=np.float32)
    padded_tokens = np.zeros((len(cuts), most_tokens), dtype=np.int64)
    for row, (frames, ids) in enumerate(zip(features, tokens, strict=True)):
        padded[row, : len(frames)] = frames
        padded_tokens[row, : len(ids)] = ids
    return Batch(
        features=torch.from_numpy(padded),
        feature_lengths=torch.tensor([len(one) for one in features], dtype=torch.int64),
        tokens=torch.from_numpy(padded_tokens),
        token_lengths=torch.tensor([len(one) for one in tokens], dtype=torch.int64),
        ids=tuple(cut.id for cut in cuts),
        positions=torch.tensor(list(positions), dtype=torch.int64),
        audio_seconds=float(sum(cut.duration for cut in cuts)),
        texts={cut.id: text_of(cut) for cut in cuts},
        is_copy=is_copy,
    )


def text_of(cut: Cut) -> str:
    """The transcript of a cut; empty if it has none."""
    return " ".join(supervision.text or "" for supervision in cut.supervisions).strip()


def process_slice(num_utterances: int, rank: int, world_size: int) -> list[int]:
    """Positions of a global batch that one process takes.

    Each process takes a contiguous part; parts differ in size by at most one, and in order of rank
    they form the batch. A batch smaller than ``world_size`` is repeated, because every process must
    compute something; from rank ``num_utterances`` on, its utterances are copies
    (:attr:`Batch.is_copy`).
    """
    if num_utterances < world_size:
        return [rank % num_utterances]
    first = rank * num_utterances // world_size
    return list(range(first, (rank + 1) * num_utterances // world_size))
