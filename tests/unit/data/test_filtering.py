"""Utterances that cannot be trained on are left out by name."""

from __future__ import annotations

from lhotse import CutSet

from omnisparse.data.features import num_frames
from omnisparse.data.filtering import filter_utterances
from omnisparse.data.tokenizer import Tokenizer


def test_tokens_that_outnumber_frames(cuts: CutSet, tokenizer: Tokenizer) -> None:
    def output_lengths(frames: int) -> int:
        return frames // 4

    kept, skipped = filter_utterances(cuts, tokenizer, output_lengths=output_lengths, stack=4)
    fitting = [
        cut.id
        for cut in cuts
        if len(tokenizer.encode(cut.supervisions[0].text))
        <= -(-num_frames(cut.num_samples) // 4) // 4
    ]
    assert list(kept.ids) == fitting
    assert 0 < len(fitting) < 40
    assert {item.reason for item in skipped} == {"too-many-tokens"}
    assert sorted([*kept.ids, *(item.id for item in skipped)]) == sorted(cuts.ids)
    assert "tokens" in skipped[0].detail


def test_lengths_and_blank_texts(cuts: CutSet, tokenizer: Tokenizer) -> None:
    blank = list(cuts)
    blank[0] = blank[0].map_supervisions(lambda s: s.with_offset(0))
    blank[0].supervisions[0].text = None
    kept, skipped = filter_utterances(
        CutSet.from_cuts(blank),
        tokenizer,
        output_lengths=lambda frames: 1000,
        stack=3,
        min_seconds=0.5,
        max_seconds=1.2,
    )
    assert all(0.5 <= cut.duration <= 1.2 for cut in kept)
    assert {"too-short", "too-long"} <= {item.reason for item in skipped}
    assert len(kept) + len(skipped) == 40
    _, only_blank = filter_utterances(
        CutSet.from_cuts(blank[:1]), tokenizer, output_lengths=lambda frames: 1000, stack=3
    )
    assert [item.reason for item in only_blank] == ["untranscribed"]
