"""Removing utterances that cannot be used for training, with their names and reasons."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from omnisparse.data.batch import text_of
from omnisparse.data.features import num_frames
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.data.validation import SkippedItem

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

_PLAIN = re.compile(r"[ A-Za-z0-9'.,?!-]*[A-Za-z0-9][ A-Za-z0-9'.,?!-]*")


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

    available_of = cache(output_lengths)
    kept: list[Cut] = []
    skipped: list[SkippedItem] = []
    for cut in cuts:
        stacked = -(-num_frames(cut.num_samples, cut.sampling_rate) // stack)
        available = available_of(stacked)
        tokens = _count_tokens(text_of(cut), tokenizer, available)
        if cut.duration < min_seconds or stacked == 0:
            skipped.append(SkippedItem(cut.id, "too-short", f"{cut.duration:.2f} s"))
        elif cut.duration > max_seconds:
            skipped.append(SkippedItem(cut.id, "too-long", f"{cut.duration:.2f} s"))
        elif tokens == 0:
            skipped.append(SkippedItem(cut.id, "untranscribed", "no tokens"))
        elif tokens > available:
            detail = f"{tokens} tokens, {available} encoder frames"
            skipped.append(SkippedItem(cut.id, "too-many-tokens", detail))
        else:
            kept.append(cut)
    return CutSet.from_cuts(kept), tuple(skipped)


def _count_tokens(text: str, tokenizer: Tokenizer, available: int) -> int:
    """Tokens of a text; an upper bound where even that is not above ``available``."""
    # A piece covers at least one character, and one may stand before the first word. Others than
    # these may become more characters, or none, before they are cut into pieces.
    if len(text) < available and _PLAIN.fullmatch(text):
        return len(text) + 1
    return len(tokenizer.encode(text))
