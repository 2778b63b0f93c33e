"""Words side by side, the errors counted by what they are, and the files they are written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.evaluation.alignment import Confusion, align, count_confusions
from omnisparse.evaluation.breakdown import by_length, by_speaker
from omnisparse.evaluation.result import EvaluationResult, Said, score
from omnisparse.evaluation.transcripts import write_transcripts
from omnisparse.evaluation.wer import ErrorCounts, word_errors

sentences = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6).map(" ".join)


@given(sentences, sentences)
def test_alignments_have_the_errors_that_are_counted(reference: str, hypothesis: str) -> None:
    edits = align(reference, hypothesis)
    assert " ".join(edit.reference for edit in edits if edit.reference) == reference
    assert " ".join(edit.hypothesis for edit in edits if edit.hypothesis) == hypothesis
    operations = [edit.operation for edit in edits]
    assert word_errors([reference], [hypothesis]) == [
        ErrorCounts(
            substitutions=operations.count("S"),
            deletions=operations.count("D"),
            insertions=operations.count("I"),
            words=len(reference.split()),
        )
    ]


def test_confusions_come_most_frequent_first() -> None:
    pairs = [("play the music", "play music"), ("the cat", "a cat"), ("the dog", "a dog now")]
    assert count_confusions(pairs) == [
        Confusion(reference="the", hypothesis="a", count=2),
        Confusion(reference=None, hypothesis="now", count=1),
        Confusion(reference="the", hypothesis=None, count=1),
    ]
    assert count_confusions([("same", "same")]) == []


def result() -> EvaluationResult:
    said = [
        Said(id="good", reference="all is well", seconds=1.0, speaker="anna"),
        Said(id="bad", reference="play the 音楽 now", seconds=2.0, speaker="bert"),
        Said(id="quiet", reference="", seconds=7.5, speaker=None),
        Said(id="short", reference="stop", seconds=0.5, speaker="bert"),
    ]
    return score(said, ["all is well", "play 音 no then", "um", "top"], seconds=2.0)


def test_transcripts_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "new" / "all.jsonl"
    write_transcripts(result().hypotheses, path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["bad", "quiet", "short", "good"]
    assert lines[0] == {
        "id": "bad", "speaker": "bert", "duration": 2.0,
        "reference": "play the 音楽 now", "hypothesis": "play 音 no then",
        "words": 4, "substitutions": 3, "deletions": 0, "insertions": 0, "wer": 75.0,
        "characters": 15, "cer": pytest.approx(100 * 9 / 15),
        "alignment": [
            ["=", "play", "play"], ["S", "the", "音"], ["S", "音楽", "no"], ["S", "now", "then"],
        ],
    }  # fmt: skip
    assert (lines[1]["words"], lines[1]["insertions"], lines[1]["wer"]) == (0, 1, None)
    assert lines[1]["alignment"] == [["I", None, "um"]]


def test_transcripts_for_people(tmp_path: Path) -> None:
    write_transcripts(result().hypotheses, tmp_path / "all.txt")
    text = (tmp_path / "all.txt").read_text(encoding="utf-8")
    first, second, *_ = text.split("\n\n")
    assert first.splitlines() == [
        "bad: WER 75.0 %, 4 words, S 3 D 0 I 0, speaker bert, 2.00 s",
        "  said:  play the 音楽 now",
        "  heard: play 音  no   then",  # a Chinese character takes two columns
        "              S   S    S",
    ]
    assert second.splitlines() == [
        "quiet: silence, 0 words, S 0 D 0 I 1, 7.50 s",
        "  said:  **",
        "  heard: um",
        "         I",
    ]
    assert text.endswith("good: WER 0.0 %, 3 words, S 0 D 0 I 0, speaker anna, 1.00 s\n"
                         "  said:  all is well\n  heard: all is well\n\n")  # fmt: skip


def test_other_files_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name, reason in (("all.csv", ".txt file .* or a .jsonl"), ("folder.txt", "is a folder")):
        with pytest.raises(UsageError, match=reason):
            write_transcripts(result().hypotheses, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OmnisparseError, match="file is no folder to write in"):
        write_transcripts(result().hypotheses, tmp_path / "file" / "all.txt")


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path) -> None:
    found = score([Said(id="a", reference="bad \ud83d", seconds=1.0)], ["bad"], seconds=1.0)
    for name in ("a.txt", "a.jsonl"):
        write_transcripts(found.hypotheses, tmp_path / name)
    assert json.loads((tmp_path / "a.jsonl").read_text())["reference"] == "bad \ud83d"


def test_speakers_with_the_most_errors_come_first() -> None:
    groups = by_speaker(result().hypotheses)
    assert [(g.name, g.utterances, g.words, g.wer) for g in groups] == [
        ("bert", 2, 5, 80.0), ("unknown", 1, 0, None), ("anna", 1, 3, 0.0),
    ]  # fmt: skip
    assert groups[0].substitutions == 4
    assert (groups[1].insertions, groups[1].wer_low, groups[1].cer) == (1, None, None)
    assert groups[2].wer_low is None  # one utterance
    nobody = score([Said(id="a", reference="a", seconds=1.0)], ["a"], seconds=1.0)
    assert by_speaker(nobody.hypotheses) == []


def test_lengths_are_ranges_from_short_to_long() -> None:
    groups = by_length(result().hypotheses)
    assert [(g.name, g.utterances) for g in groups] == [
        ("0 to 2 s", 2), ("2 to 5 s", 1), ("5 to 10 s", 1),
    ]  # fmt: skip
    long = score([Said(id="a", reference="a", seconds=600.0)], ["a"], seconds=1.0)
    assert by_length(long.hypotheses)[0].name == "60 s and more"
