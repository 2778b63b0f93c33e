"""Every utterance of an evaluation in a file: reference, hypothesis, and their alignment.

``.txt`` is for people: aligned words are below each other, and errors are marked. ``.jsonl`` is for
programs: one object per line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnisparse.durable import replacing
from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.evaluation.alignment import Edit, align
from omnisparse.evaluation.result import UtteranceResult

_SUFFIXES = (".txt", ".jsonl")


def check_transcripts_path(path: Path) -> None:
    """Refuses a path to which transcripts cannot be written, before any time is spent.

    Raises:
        UsageError: If its suffix is not known, or it is a folder.
        OmnisparseError: If its folder cannot be written in.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"{path}: transcripts are written to a .txt file (for people) or a .jsonl file (for "
            "programs)"
        )
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; a file is needed for the transcripts")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OmnisparseError(f"{path}: cannot be written, {folder} is no folder to write in")


def write_transcripts(utterances: Sequence[UtteranceResult], path: Path) -> None:
    """Writes all utterances, those with the most errors first; the file appears complete.

    Args:
        utterances: What was said and recognised.
        path: The file, in folders that are made if absent; ``.txt`` or ``.jsonl``.

    Raises:
        OmnisparseError: As :func:`check_transcripts_path`.
        OSError: If it cannot be written.
    """
    check_transcripts_path(path)
    ordered = worst_first(utterances)
    if path.suffix.lower() == ".jsonl":
        lines = [json.dumps(_record(one), ensure_ascii=False) for one in ordered]
    else:
        lines = [line for one in ordered for line in (*_shown(one), "")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        # A transcript may contain half a surrogate pair, which is not a character.
        text = "".join(f"{line}\n" for line in lines)
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def worst_first(utterances: Sequence[UtteranceResult]) -> list[UtteranceResult]:
    """The most errors first; ties by fewest words, then in the order of the corpus."""
    return sorted(utterances, key=lambda one: (-one.counts.errors, one.counts.words))


def _record(one: UtteranceResult) -> dict[str, Any]:
    counts, characters = one.counts, one.characters
    return {
        "id": one.id,
        "speaker": one.speaker,
        "duration": one.seconds,
        "reference": one.reference,
        "hypothesis": one.hypothesis,
        "words": counts.words,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "wer": 100.0 * counts.errors / counts.words if counts.words else None,
        "characters": characters.words,
        "cer": 100.0 * characters.errors / characters.words if characters.words else None,
        "alignment": [list(edit) for edit in align(one.reference, one.hypothesis)],
    }


def _shown(one: UtteranceResult) -> list[str]:
    """The lines of an utterance for people."""
    counts = one.counts
    rate = f"WER {100.0 * counts.errors / counts.words:.1f} %" if counts.words else "silence"
    speaker = f", speaker {one.speaker}" if one.speaker else ""
    head = (
        f"{one.id}: {rate}, {counts.words} words, S {counts.substitutions} D {counts.deletions} "
        f"I {counts.insertions}{speaker}, {one.seconds:.2f} s"
    )
    edits = align(one.reference, one.hypothesis)
    return [head, *_aligned(edits)]


def _aligned(edits: Sequence[Edit]) -> list[str]:
    """Three lines with equal columns: said, heard, and the letters of the errors."""
    from rich.cells import cell_len

    said, heard, marks = ["  said: "], ["  heard:"], ["        "]
    for edit in edits:
        words = [edit.reference or "", edit.hypothesis or ""]
        width = max(map(cell_len, words))
        words = [word + " " * (width - cell_len(word)) if word else "*" * width for word in words]
        said.append(words[0])
        heard.append(words[1])
        marks.append(("" if edit.operation == "=" else edit.operation).ljust(width))
    lines = [" ".join(parts).rstrip() for parts in (said, heard, marks)]
    return lines if lines[2] else lines[:2]
