"""What a training says before it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from lhotse import CutSet, SupervisionSegment

from omnisparse.config import RunConfig, override_config
from omnisparse.data.corpora import load_manifest
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import DataError
from omnisparse.pipeline import frames
from omnisparse.pipeline.splits import Splits, tell_unseen
from omnisparse.pipeline.train import train

TinyConfig = Callable[..., RunConfig]


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


def test_a_missing_manifest_is_told_before_a_run_is_made(
    tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = override_config(tiny_config("las", "dense"), ["corpus.dev=[absent.jsonl]"])
    with pytest.raises(DataError, match=r"manifest .*absent\.jsonl: no such file"):
        train(config)
    assert not (tmp_path / "runs").exists()


def test_features_tell_how_far_they_are(
    tiny_config: TinyConfig, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    now = iter(range(0, 1000, 11))
    monkeypatch.setattr(frames.time, "monotonic", lambda: next(now))
    cuts = load_manifest(manifest)
    config = tiny_config("las", "dense")
    corpus = dataclasses.replace(config.corpus, root=str(tmp_path))
    config = dataclasses.replace(config, corpus=corpus)
    frames.frame_source(config, cuts, lines.append)
    assert lines == [f"features of {len(cuts)} of {len(cuts)} utterances"]
