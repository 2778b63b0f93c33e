"""Measuring the models of runs: their errors, stored in the run, and their costs.

Every model is measured from the files that a user would get.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.atomic import replaced_file
from omnisparse.comparison.candidates import Candidate, read_config
from omnisparse.comparison.plan import Model
from omnisparse.comparison.rows import TableRows
from omnisparse.comparison.table import Measurement, RowCost
from omnisparse.data.batch import text_of
from omnisparse.data.corpora import load_manifest, manifest_name
from omnisparse.data.identity import identify
from omnisparse.data.pauses import cut_length
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import OmnisparseError
from omnisparse.evaluation.evaluate import said_in
from omnisparse.evaluation.heard import Heard
from omnisparse.evaluation.notes import corpus_notes, length_note
from omnisparse.evaluation.wer import character_errors, word_errors
from omnisparse.evaluation.workers import Workers
from omnisparse.models import TransducerModel
from omnisparse.pipeline.evaluate import recognise, recognizer_of
from omnisparse.pipeline.extract import extract, write_own_net
from omnisparse.pipeline.splits import Corpus, describe_corpora, list_test_manifests
from omnisparse.runs import directory as runs
from omnisparse.runs.record import total_cost
from omnisparse.runs.weights import run_name
from omnisparse.sparsity.arrays import count_nonzero
from omnisparse.sparsity.keys import parse_block, ranking_of
from omnisparse.sparsity.space import SubnetSpec
from omnisparse.version import __version__

if TYPE_CHECKING:
    from lhotse import CutSet

_FORMAT = 1
_FOLDER = "compare"

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Gives a progress callback for a task of this name."""


def list_manifests(candidates: Sequence[Candidate], given: Sequence[Path]) -> dict[str, Path]:
    """The test sets by name: those given, or those of the runs' configurations.

    Raises:
        OmnisparseError: If none is given and the runs name different ones, or none.
    """
    if not given:
        found = {
            tuple(map(str, list_test_manifests(read_config(c.path).corpus))) for c in candidates
        }
        if len(found) != 1 or not next(iter(found)):
            what = "different test manifests" if len(found) > 1 else "no test manifest"
            raise OmnisparseError(f"the runs name {what}: give one with --manifest")
        given = [Path(path) for path in found.pop()]
    named: dict[str, Path] = {}
    for path in given:
        name = manifest_name(path)
        while name in named:
            name += "'"
        named[name] = path
    return named


def measure(
    models: Sequence[Model],
    manifests: dict[str, Path],
    *,
    beam: int,
    progress: Progress,
    tell: Callable[[str], None] = lambda line: None,
    workers: Workers | None = None,
) -> list[Measurement]:
    """Measure every model on every test set; results that the runs store already are used.

    Args:
        models: The models.
        manifests: The test sets by name.
        beam: Hypotheses kept while decoding; 1 is greedy.
        progress: Gives a progress callback.
        tell: Called first with lines about the test sets: corpora, utterances, hours, speakers, and
            problems that may distort the rates.
        workers: Processes that recognise, and their device; None for this one and its CPU. The
            texts do not depend on their number.

    Raises:
        OmnisparseError: If a run or manifest cannot be used.
    """
    tests = {}
    for name, path in manifests.items():
        cuts = load_manifest(path, sampling_rate=_rate_of(models), tell=tell)
        tests[name] = (cuts, _digest(cuts))
    corpora = [Corpus(name=str(manifests[name]), cuts=cuts) for name, (cuts, _) in tests.items()]
    for line in describe_corpora("tests on", corpora):
        tell(line)
    tokenizers = [
        Tokenizer.load(path / "tokenizer.model")
        for path in dict.fromkeys(model.candidate.path for model in models)
    ]
    paths = dict.fromkeys(model.candidate.path for model in models)
    descriptions = [runs.read_description(path) for path in paths]
    for name, (cuts, _) in tests.items():
        seconds = [float(cut.duration) for cut in cuts]
        notes = corpus_notes([text_of(cut) for cut in cuts], tokenizers, _speakers(cuts))
        for description in descriptions:
            streams = description.model["kind"] == TransducerModel.kind
            trained = description.trained_seconds
            cut_above = cut_length(trained, streams=streams)
            notes.append(length_note(seconds, trained, cut_above=cut_above, streams=streams) or "")
        for line in filter(None, dict.fromkeys(notes)):
            tell(f"{name}: {line}")
    measurements = []
    heard = {name: Heard() for name in tests}
    for model in models:
        with tempfile.TemporaryDirectory(prefix="omnisparse-") as folder:
            artifact: dict[str, Any] = {}
            for name, (cuts, digest) in tests.items():
                place, key = _kept(model, name, digest, beam)
                kept, speakers = _read_kept(place, key), _speakers(cuts)
                if kept is None:
                    artifact = artifact or _make(model, Path(folder))
                    task = f"{run_name(model.candidate.path)} {model.size}, {name}"
                    with progress(task) as callback:
                        kept = _recognise(artifact, cuts, key, beam, callback, workers, heard[name])
                if kept.get("speakers") != list(speakers):  # new, or of an earlier version
                    kept["speakers"] = list(speakers)
                    _keep(place, kept, tell)
                measurements.append(_measurement(model, name, kept, speakers))
    return measurements


def _rate_of(models: Sequence[Model]) -> int | None:
    """Rate at which the first model hears, in Hz; the others mostly do, too."""
    for model in models:
        return int(runs.read_description(model.candidate.path).features["sampling_rate"])
    return None


def _digest(cuts: CutSet) -> str:
    """A digest of the words and audio of a test set, independent of file names."""
    return hashlib.sha256(repr(identify(cuts)).encode()).hexdigest()


def _kept(model: Model, test: str, digest: str, beam: int) -> tuple[Path, dict[str, Any]]:
    """The file for the transcripts of a model, and everything that they depend on."""
    key = {
        "format": _FORMAT,
        "version": __version__,
        "identity": model.candidate.record.training.identity,
        "request": model.request,
        "manifest": digest,
        "beam": beam,
    }
    description = runs.read_description(model.candidate.path)
    if description.block != "1x1":
        key["ranking"] = ranking_of(parse_block(description.block), description.single)
    if description.trained_seconds is not None:  # longer utterances may be cut at pauses
        key["trained_seconds"] = description.trained_seconds
    short = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    name = f"{(model.request or 'own').replace('%', 'pct')}-{test.replace('/', '-')}-{short}.json"
    return model.candidate.path / _FOLDER / name, key


def _read_kept(place: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The stored transcripts; None if there are none, or they cannot be read."""
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
        sound = document["key"] == key and all(len(line) == 3 for line in document["utterances"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return document if sound else None


def _keep(place: Path, document: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Store transcripts in their run; where that is read-only, they are made again next time."""
    try:
        with replaced_file(place) as partial:
            partial.write_text(json.dumps(document), encoding="utf-8")
    except (OmnisparseError, OSError) as error:
        tell(f"what was recognised is not kept: {error}")


def _make(model: Model, folder: Path) -> dict[str, Any]:
    """Write the model's files as a user would get them."""
    run = model.candidate.path
    out = folder / "model"
    if model.request is not None:
        return extract(run, size=model.request, out=out)
    description = runs.read_description(run)
    if description.model.get("ranks"):
        return write_own_net(run, out)
    weights, _ = runs.newest_weights(run)
    kept = {name: count_nonzero(weights[name]) for name in description.prunable}
    numel = {name: math.prod(weights[name].shape) for name in description.prunable}
    spec = folder / "spec.json"
    spec.write_text(SubnetSpec.from_counts(kept, numel).to_json(), encoding="utf-8")
    return extract(run, spec=spec, out=out)


def _recognise(
    artifact: dict[str, Any],
    cuts: CutSet,
    key: dict[str, Any],
    beam: int,
    progress: Callable[[int, int], None],
    workers: Workers | None,
    heard: Heard,
) -> dict[str, Any]:
    path = Path(artifact["path"])
    recognizer = recognizer_of(runs.load_model(path))
    result = recognise(
        path, recognizer, cuts, beam=beam, workers=workers, progress=progress, heard=heard
    )
    return {
        "key": key,
        **{name: artifact[name] for name in ("parameters", "nonzero", "bytes")},
        "seconds": result.seconds,
        "utterances": [[line.id, line.reference, line.hypothesis] for line in result.hypotheses],
    }


def _speakers(cuts: CutSet) -> tuple[str | None, ...]:
    """The speaker of each utterance."""
    return tuple(said_in(cut).speaker for cut in cuts)


def _measurement(
    model: Model, test: str, kept: dict[str, Any], speakers: tuple[str | None, ...]
) -> Measurement:
    candidate = model.candidate
    references = [line[1] for line in kept["utterances"]]
    hypotheses = [line[2] for line in kept["utterances"]]
    return Measurement(
        row=candidate.row,
        size=model.size,
        test=test,
        run=run_name(candidate.path),
        parameters=kept["parameters"],
        nonzero=kept["nonzero"],
        bytes=kept["bytes"],
        counts=tuple(word_errors(references, hypotheses)),
        characters=tuple(character_errors(references, hypotheses)),
        speakers=speakers,
        account=candidate.record.account,
    )


def cost_of_rows(models: Sequence[Model], rows: TableRows) -> list[RowCost]:
    """The total cost of each row, in the order of the table."""
    costs = []
    for row in rows.those_of(model.candidate.row for model in models):
        chosen = [model for model in models if model.candidate.row == row]
        own = {model.candidate.record.training for model in chosen}
        named = {identity.identity for identity in own}
        needed = {
            source
            for model in chosen
            for source in model.candidate.record.sources
            if source.identity not in named
        }
        whole, teachers = total_cost([*own, *needed]), total_cost(needed)
        costs.append(
            RowCost(
                row=row,
                models=len(chosen),
                trainings=int(whole["trainings"]),
                utterance_passes=whole["utterance_passes"],
                optimizer_steps=int(whole["optimizer_steps"]),
                device_seconds=whole["device_seconds"],
                search_evaluations=int(whole["search_evaluations"]),
                teacher_utterance_passes=teachers["utterance_passes"],
                teacher_device_seconds=teachers["device_seconds"],
                flops=whole["flops"],
                teacher_flops=teachers["flops"],
            )
        )
    return costs
