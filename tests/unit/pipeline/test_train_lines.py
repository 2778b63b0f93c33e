"""What a training says before it begins."""

from __future__ import annotations

from pathlib import Path

from lhotse import CutSet, SupervisionSegment

from omnisparse.data.corpora import load_manifest
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.pipeline.splits import Splits, tell_unseen


def _saying(cuts: CutSet, texts: list[str]) -> CutSet:
    return CutSet.from_cuts(
        [
            cut.with_id(f"{cut.id}-{text[:9]}").map_supervisions(
                lambda one, text=text: SupervisionSegment(
                    one.id, one.recording_id, one.start, one.duration, text=text
                )
            )
            for cut, text in zip(cuts, texts, strict=False)
        ]
    )


def test_characters_that_training_never_saw_are_told_once_a_split(
    manifest: Path, tmp_path: Path
) -> None:
    cuts = load_manifest(manifest)
    composed = ["caf\u00e9 open now", "the caf\u00e9"]
    decomposed = ["cafe\u0301 open now", "the cafe\u0301", ""]
    tokenizer = Tokenizer.train(composed, 20, tmp_path)
    lines: list[str] = []
    train = _saying(cuts, composed)
    tell_unseen(Splits(train, train), tokenizer, lines.append)
    assert lines == []
    tell_unseen(Splits(train, _saying(cuts, decomposed)), tokenizer, lines.append)
    (line,) = lines
    assert line.startswith("dev set: 2 of 5 words (40.0 %, in 2 transcripts) hold characters")
    assert "U+0301" in line
    assert line.endswith("after `omnisparse prepare import --normalize nfc` it could")
