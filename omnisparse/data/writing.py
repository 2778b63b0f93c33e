"""Read corpora written down: as the folder that an import makes, and as NeMo manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.data.atomic_folder import atomic_folder
from omnisparse.data.audio import recordings_of
from omnisparse.data.members import parse_member
from omnisparse.data.validation import ReadSplit, SkippedItem
from omnisparse.durable import replacing
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse.cut import Cut


def write_splits(
    splits: Mapping[str, ReadSplit],
    out: Path,
    origin: Mapping[str, Any],
    divided: Mapping[str, list[Cut]] | None = None,
) -> dict[str, Any]:
    """Write read splits as an imported corpus.

    Args:
        splits: By name; those without a good utterance are not written.
        out: Folder for `<split>.jsonl.gz`, `skipped.jsonl` and `import.json`.
        origin: Where they come from and how they were changed, for `import.json`.
        divided: Their good utterances under other names, where they were divided anew.

    Returns:
        `{"splits": {name: {"utterances", "hours", "speakers"}}, "skipped": count of bad ones,
        "reasons": {reason: count}, "left_out": count of those that the corpus itself leaves out,
        "normalize": rules}`.

    Raises:
        DataError: If writing fails.
    """
    every = {name: split.cuts for name, split in splits.items()} if divided is None else divided
    kept = {name: cuts for name, cuts in every.items() if cuts}
    reasons: dict[str, int] = {}
    for split in splits.values():
        for item in split.skipped[: split.num_bad]:
            reasons[item.reason] = reasons.get(item.reason, 0) + 1
    skipped = [item for split in splits.values() for item in split.skipped]
    bad = sum(split.num_bad for split in splits.values())
    statistics = {
        "splits": {name: split_statistics(cuts) for name, cuts in kept.items()},
        **{"skipped": bad, "reasons": reasons, "left_out": len(skipped) - bad},
        "normalize": list(origin.get("normalize", ())),
    }
    try:
        with atomic_folder(out) as folder:
            for name, cuts in kept.items():
                _write_cuts(cuts, folder / f"{name}.jsonl.gz")
            write_skipped(skipped, folder / "skipped.jsonl")
            document = json.dumps({**origin, **statistics}, indent=1, ensure_ascii=False)
            (folder / "import.json").write_text(document + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror or error}") from error
    return statistics


def _write_cuts(cuts: list[Cut], path: Path) -> None:
    from lhotse import CutSet

    CutSet.from_cuts(cuts).to_file(path)


def split_statistics(cuts: Iterable[Cut]) -> dict[str, Any]:
    """Size of a split.

    Returns:
        `{"utterances": count, "hours": of audio, "speakers": count of named ones}`.
    """
    utterances, seconds = 0, 0.0
    speakers: set[str] = set()
    for cut in cuts:
        utterances += 1
        seconds += cut.duration
        speakers.update(one.speaker for one in cut.supervisions if one.speaker)
    return {"utterances": utterances, "hours": seconds / 3600, "speakers": len(speakers)}


def write_nemo_manifest(cuts: Iterable[Cut], path: Path) -> None:
    """Write cuts of single files as NeMo JSON lines, with audio paths relative where possible.

    Raises:
        DataError: If a cut is not a stretch of one untransformed audio file.
    """
    folder = path.parent.absolute()
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for cut in cuts:
            file.write(json.dumps(_nemo_record(cut, folder), ensure_ascii=False) + "\n")


def _nemo_record(cut: Cut, folder: Path) -> dict[str, Any]:
    sources = [source for recording in recordings_of(cut) for source in recording.sources]
    recording = getattr(cut, "recording", None)
    if len(sources) != 1 or recording is None or recording.transforms:
        raise DataError(f"{cut.id} is not one untransformed audio file; NeMo cannot describe it")
    if parse_member(str(sources[0].source)) is not None:
        raise DataError(f"{cut.id} lies in an archive; NeMo's manifests name files")
    audio = Path(sources[0].source)
    if audio.is_relative_to(folder):
        audio = audio.relative_to(folder)
    supervision = cut.supervisions[0]
    record: dict[str, Any] = {"id": cut.id, "audio_filepath": str(audio)}
    if cut.start > 0 or cut.duration < recording.duration:
        record["offset"] = cut.start
    record |= {"duration": cut.duration, "text": supervision.text or ""}
    channel: Any = getattr(cut, "channel", 0)
    if recording.num_channels > 1:
        record["channel_selector"] = channel
    if supervision.speaker:
        record["speaker"] = supervision.speaker
    return record


def write_skipped(skipped: Iterable[SkippedItem], path: Path) -> None:
    """Write the items left out as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for item in skipped:
            file.write(json.dumps(asdict(item)) + "\n")
