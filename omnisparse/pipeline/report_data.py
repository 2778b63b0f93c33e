"""What a report shows of a run: what it measured, what came of it, and what it cost.

Everything is read from the run directories, of earlier versions too; what a run does not have is
left out. Nothing is trusted: sizes are limited, and all text is escaped by the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omnisparse.errors import DataError, OmnisparseError
from omnisparse.runs import directory as runs
from omnisparse.runs.listing import summarize
from omnisparse.runs.record import read_record
from omnisparse.runs.weights import run_name

_MOST_BYTES = 256 << 20
_MOST_LINE = 1 << 20
_MOST_FILES = 24
_MOST_UTTERANCES = 12
_MOST_CONFIG = 1 << 20

Series = dict[str, list[tuple[float, float]]]
"""Points (step, value) of every name, in order."""


@dataclass
class Result:
    """A model of one size on one test set; rates in percent."""

    size: str
    test: str
    nonzero: int
    wer: float
    wer_low: float | None = None
    wer_high: float | None = None
    bytes: int | None = None
    source: str = "compare"
    utterances: list[tuple[str, str, str]] = field(default_factory=list)
    """Id, reference and hypothesis of those with most errors."""


@dataclass
class RunReport:
    """What is known of one run."""

    name: str
    path: Path
    state: str
    method: str
    steps: int
    max_steps: int | None
    parameters: int | None
    dev_wer: float | None
    cost: dict[str, Any]
    processes: int
    config: str
    series: Series
    results: list[Result]
    densities: list[tuple[str, dict[str, float]]]
    """Name of a model, and the share of non-zeros of each of its matrices."""

    @property
    def throughput(self) -> list[tuple[float, float]]:
        """Audio seconds per second of all processes together, by step; empty in older runs."""
        names = ("audio_seconds", "device_seconds")
        audio, seconds = (dict(self.series.get(name, [])) for name in names)
        found, before = [], (0.0, 0.0)
        for step in sorted(audio.keys() & seconds.keys()):
            now = (audio[step], seconds[step])
            if now[1] > before[1]:
                rate = self.processes * (now[0] - before[0]) / (now[1] - before[1])
                found.append((step, rate))
            before = now
        return found


def read_run(path: Path) -> RunReport:
    """Read what a run directory holds.

    Raises:
        OmnisparseError: If it is none.
    """
    runs.require_directory(path, runs.RUN_ONLY)
    if not (path / "config.yaml").is_file():
        raise OmnisparseError(f"{path}: not a run directory (it has no config.yaml)")
    resolved = path.resolve()  # `runs/latest` stands for the run
    summary = summarize(resolved)
    cost: dict[str, Any] = {}
    identity, processes = None, 1
    try:
        record = read_record(resolved)
        cost, identity = asdict(record.account), record.training.identity
        state = runs.newest_checkpoint(resolved)[1]["state"]
        processes = max(1, int(state.get("processes", 1)))
    except (OmnisparseError, OSError, TypeError, ValueError):
        pass  # before its first checkpoint, or damaged: the state says so
    return RunReport(
        name=run_name(resolved),
        path=resolved,
        state=summary.state,
        method=summary.method or "",
        steps=summary.steps,
        max_steps=summary.max_steps,
        parameters=summary.parameters,
        dev_wer=summary.dev_wer,
        cost=cost,
        processes=processes,
        config=_text(resolved / "config.yaml", _MOST_CONFIG),
        series=read_metrics(resolved / "metrics.jsonl"),
        results=[*_compared(resolved, identity), *_searched(resolved, identity)],
        densities=_densities(resolved),
    )


def read_metrics(path: Path) -> Series:
    """The finite numbers of every whole line of ``metrics.jsonl`` that names its step."""
    series: Series = {}
    for line in _objects(path):
        step = line.get("step")
        if isinstance(step, bool) or not isinstance(step, int):
            continue
        for name, value in line.items():
            if name != "step" and _is_number(value):
                series.setdefault(name, []).append((float(step), float(value)))
    return series


def read_transcripts(path: Path) -> list[tuple[str, str, str]]:
    """Id, reference and hypothesis of the first utterances of a file of ``evaluate --transcripts``.

    Raises:
        DataError: If there is none.
    """
    found = []
    for line in _objects(path):
        words = (line.get("id"), line.get("reference"), line.get("hypothesis"))
        if all(isinstance(word, str) for word in words):
            found.append((str(words[0]), str(words[1]), str(words[2])))
        if len(found) == _MOST_UTTERANCES:
            break
    if not found:
        raise DataError(
            f"{path}: no transcripts; a file of `omnisparse evaluate ... --transcripts FILE.jsonl` "
            "is expected"
        )
    return found


def _is_number(value: Any) -> bool:
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and abs(value) < 1e300 and math.isfinite(value)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines; what is no object is left out."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        left = _MOST_BYTES
        while left > 0 and (line := file.readline(_MOST_LINE)):
            left -= len(line)
            try:
                document = json.loads(line)
            except (ValueError, RecursionError):
                continue  # of a killed process, or longer than a line may be
            if isinstance(document, dict):
                yield document


def _text(path: Path, most: int) -> str:
    with path.open("rb") as file:
        return file.read(most).decode(errors="replace")


def _document(path: Path) -> dict[str, Any]:
    """A JSON object; empty if it is none or too large."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_of(identity: str | None, stated: Any) -> bool:
    """Whether something is of the run's present weights, not of those before it trained on."""
    return identity is None or stated is None or bool(stated == identity)


def _compared(run: Path, identity: str | None) -> list[Result]:
    """What ``compare`` has measured and kept in the run."""
    found = []
    for path in sorted((run / "compare").glob("*.json")):
        result = _result(_document(path), path.stem, identity)
        if result is not None:
            found.append(result)
        if len(found) == _MOST_FILES:
            break
    return sorted(found, key=lambda result: (result.test, result.nonzero))


def _result(document: dict[str, Any], stem: str, identity: str | None) -> Result | None:
    from omnisparse.evaluation.confidence import confidence_interval
    from omnisparse.evaluation.wer import corpus_wer, word_errors

    lines, nonzero, key = (document.get(name) for name in ("utterances", "nonzero", "key"))
    if not isinstance(lines, list) or not isinstance(nonzero, int) or not isinstance(key, dict):
        return None
    if not _is_of(identity, key.get("identity")):
        return None
    if not all(
        isinstance(line, list) and len(line) == 3 and all(isinstance(word, str) for word in line)
        for line in lines
    ):
        return None
    utterances = [(line[0], line[1], line[2]) for line in lines]
    try:
        counts = word_errors([line[1] for line in utterances], [line[2] for line in utterances])
        rate = corpus_wer(counts)
        speakers = _speakers(document, len(lines))  # None of an earlier version: no interval
        known = None if speakers is None else confidence_interval(counts, speakers=speakers)
    except ValueError:
        return None  # no reference has a word
    order = sorted(range(len(counts)), key=lambda n: (-counts[n].errors, counts[n].words))
    request = key.get("request") or "own"
    prefix, _, _ = stem.rpartition("-")
    beam = key.get("beam", 1)
    return Result(
        size=str(request),
        test=prefix.partition("-")[2] + (f", beam {beam}" if beam != 1 else ""),
        nonzero=nonzero,
        wer=rate,
        wer_low=None if known is None else known.low,
        wer_high=None if known is None else known.high,
        bytes=document["bytes"] if isinstance(document.get("bytes"), int) else None,
        utterances=[utterances[n] for n in order[:_MOST_UTTERANCES]],
    )


def _speakers(document: dict[str, Any], number: int) -> list[str | None] | None:
    """The speaker of each utterance; None where that is not told."""
    found = document.get("speakers")
    if not isinstance(found, list) or len(found) != number:
        return None
    return [one if isinstance(one, str) else None for one in found]


def _searched(run: Path, identity: str | None) -> list[Result]:
    """The front of the search for better subnets."""
    document = _document(run / "search" / "front.json")
    entries = document.get("front") if _is_of(identity, document.get("identity")) else None
    found = []
    for entry in entries[:_MOST_FILES] if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        nonzero, rate = entry.get("nonzero"), entry.get("wer")
        if isinstance(nonzero, int) and _is_number(rate):
            size = str(entry.get("size"))
            low, high = _number(entry.get("wer_low")), _number(entry.get("wer_high"))
            found.append(
                Result(size, "dev", nonzero, float(rate), low, high, source="search")  # type: ignore[arg-type]
            )
    return found


def _densities(run: Path) -> list[tuple[str, dict[str, float]]]:
    """The matrices of the run's own net, and of the artifacts that were extracted into it."""
    from omnisparse.artifact import inspect_artifact, is_artifact

    try:
        prunable = set(runs.read_description(run).prunable)
    except (OmnisparseError, TypeError):
        return []  # before its first step
    found = []
    folders = sorted((run / "extracted").glob("*"))[:_MOST_FILES]
    for path in [run, *(folder for folder in folders if is_artifact(folder))]:
        try:
            counted = runs.inspect(path) if path == run else inspect_artifact(path)
        except (OmnisparseError, OSError, ValueError):
            continue
        layers = {
            layer["name"]: layer["nonzero"] / max(1, math.prod(layer["shape"]))
            for layer in counted["layers"]
            if layer["name"] in prunable
        }
        name = "the run's net" if path == run else path.name
        found.append((counted["nonzero"], name, layers))
    return [(name, layers) for _, name, layers in sorted(found, key=lambda one: -one[0])]
