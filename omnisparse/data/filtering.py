"""Removing utterances that cannot be used for training, with their names and reasons."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from omnisparse.data.batch import text_of
from omnisparse.data.features import num_frames
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.data.validation import SkippedItem

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut


def filter_utterances(
    cuts: CutSet,
    tokenizer: Tokenizer,
    *,
    output_lengths: Callable[[int], int],
    stack: int,
    min_seconds: float = 0.0,
    max_seconds: float = float("inf"),
) -> tuple[CutSet, tuple[SkippedItem, ...]]:
    """Keep the utterances that have no more tokens than encoder frames.

    A transducer has no alignment for more tokens than it can emit; its loss is then infinite or
    meaningless, and one such utterance can spoil a run.

    Args:
        cuts: Utterances, including copies at other speeds.
        tokenizer: Encodes the transcripts.
        output_lengths: Encoder frames for a number of stacked feature frames.
        stack: Frames of 10 ms in a stacked frame.
        min_seconds: Shortest utterance kept, in seconds.
        max_seconds: Longest utterance kept, in seconds.

    Returns:
        The utterances kept, in order, and those left out with the reason `too-short`, `too-long`,
        `untranscribed` or `too-many-tokens`.
    """
    from lhotse import CutSet

    num_tokens: dict[str, int] = {}
    kept: list[Cut] = []
    skipped: list[SkippedItem] = []
    for cut in cuts:
        text = text_of(cut)
        if text not in num_tokens:
            num_tokens[text] = len(tokenizer.encode(text))
        stacked = -(-num_frames(cut.num_samples, cut.sampling_rate) // stack)
        available = output_lengths(stacked)
        if cut.duration < min_seconds or stacked == 0:
            skipped.append(SkippedItem(cut.id, "too-short", f"{cut.duration:.2f} s"))
        elif cut.duration > max_seconds:
            skipped.append(SkippedItem(cut.id, "too-long", f"{cut.duration:.2f} s"))
        elif num_tokens[text] == 0:
            skipped.append(SkippedItem(cut.id, "untranscribed", "no tokens"))
        elif num_tokens[text] > available:
            detail = f"{num_tokens[text]} tokens, {available} encoder frames"
            skipped.append(SkippedItem(cut.id, "too-many-tokens", detail))
        else:
            kept.append(cut)
    return CutSet.from_cuts(kept), tuple(skipped)
