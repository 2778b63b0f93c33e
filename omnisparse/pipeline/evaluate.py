"""Evaluating a model on a test set: rates, errors, transcripts. `omnisparse evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omnisparse.artifact import update_card
from omnisparse.data.corpora import manifest_name, read_manifest
from omnisparse.data.unseen import find_unseen
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.errors import OmnisparseError
from omnisparse.evaluation.alignment import count_confusions
from omnisparse.evaluation.breakdown import by_length, by_speaker
from omnisparse.evaluation.confidence import paired_bootstrap
from omnisparse.evaluation.evaluate import evaluate
from omnisparse.evaluation.result import EvaluationResult
from omnisparse.evaluation.transcripts import check_transcripts_path, write_transcripts
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_account

MAX_CONFUSIONS = 50
"""Number of different errors that a result lists."""

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Gives a progress callback for a task of this name."""


def evaluate_model(
    model: Path,
    manifest: Path,
    *,
    progress: Progress,
    beam: int = 1,
    streaming: bool = False,
    card: bool = False,
    against: Path | None = None,
    transcripts: Path | None = None,
) -> dict[str, Any]:
    """Recognises a test set and counts the errors.

    Args:
        model: An artifact or run directory.
        manifest: The test set.
        progress: Gives a progress callback.
        beam: Hypotheses kept while decoding; 1 is greedy.
        streaming: Recognise chunk by chunk.
        card: Write the result into the artifact's card.
        against: A second model to evaluate and to compare with.
        transcripts: File for every utterance with its errors, ``.txt`` or ``.jsonl``.

    Returns:
        ``EvaluationResult.to_dict()``, ``confusions``, ``by_speaker``, ``by_length``, ``warnings``,
        ``against``, ``transcripts``, ``skipped`` (bad items left out), the sizes of the model and
        the bill of its training.

    Raises:
        UsageError: If ``transcripts`` has an unknown suffix.
        ValueError: If the model cannot stream, or ``beam`` is below 1.
        OmnisparseError: If the model or the test set cannot be used.
    """
    if transcripts is not None:
        check_transcripts_path(transcripts)
    models = {path: runs.load_model(path) for path in (model, against) if path is not None}
    rate = models[model].extractor.sampling_rate
    told: list[str] = []
    with progress("checking audio") as callback:
        split = read_manifest(manifest, sampling_rate=rate, tell=told.append, progress=callback)
    cuts = split.cuts
    if card and models[model].kind != "artifact":
        raise OmnisparseError(f"{model}: a run has no model card; `omnisparse extract` makes one")
    sizes, account = runs.inspect(model), read_account(model)
    recognizers = {
        path: Recognizer(loaded.model, loaded.tokenizer, loaded.extractor)
        for path, loaded in models.items()
    }
    if streaming:
        for recognizer in recognizers.values():
            recognizer.stream(
                beam=beam
            )  # raises for a model that cannot stream, before any time is spent

    def recognise(path: Path, loaded: runs.LoadedModel) -> EvaluationResult:
        recognizer = recognizers[path]

        def transcribe_stream(samples: Any) -> str:
            return recognizer.transcribe(samples, beam=beam, streaming=True).text

        with progress("recognising") as callback:
            return evaluate(
                loaded.model, cuts, extractor=loaded.extractor, tokenizer=loaded.tokenizer,
                beam=beam, transcribe=transcribe_stream if streaming else None, progress=callback,
            )  # fmt: skip

    results = {path: recognise(path, loaded) for path, loaded in models.items()}
    result = results[model]
    row: dict[str, Any] = {**result.to_dict(), **_details(result)}
    if transcripts is not None:
        write_transcripts(result.hypotheses, transcripts)
        row["transcripts"] = transcripts
    if card:
        name = manifest_name(manifest)
        name += f" beam {beam}" * (beam > 1) + " streaming" * streaming
        known = ("wer", "wer_low", "wer_high", "utterances")
        update_card(model, name, {key: row[key] for key in known})
    if against is not None:
        row["against"] = _compared(against, results[against], result)
    row["skipped"] = split.num_bad
    row["warnings"] = [*told, *result.notes(), *_unseen(models, result)]
    return {
        **row,
        **{key: sizes[key] for key in ("parameters", "nonzero", "bytes")},
        **account.to_dict(),
    }


def _compared(path: Path, other: EvaluationResult, result: EvaluationResult) -> dict[str, Any]:
    """Rates of the second model, and the difference of the first from it."""
    test = paired_bootstrap(other.counts, result.counts)
    return {"model": str(path), "wer": other.wer, **asdict(test)}


def _unseen(models: Mapping[Path, runs.LoadedModel], result: EvaluationResult) -> list[str]:
    """Messages about reference words that the tokenizers of the models cannot write."""
    references = [utterance.reference for utterance in result.hypotheses]
    found = {path: find_unseen(loaded.tokenizer, references) for path, loaded in models.items()}
    return [f"{path}: {unseen.describe()}" for path, unseen in found.items() if unseen.unseen]


def _details(result: EvaluationResult) -> dict[str, Any]:
    """Confusions, and rates by speaker and by length."""
    utterances = result.hypotheses
    confusions = count_confusions((one.reference, one.hypothesis) for one in utterances)
    return {
        "confusions": [one.to_dict() for one in confusions[:MAX_CONFUSIONS]],
        "by_speaker": [group.to_dict() for group in by_speaker(utterances)],
        "by_length": [group.to_dict() for group in by_length(utterances)],
    }
