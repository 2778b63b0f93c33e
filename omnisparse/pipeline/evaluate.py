"""Evaluating a model on a test set: rates, errors, transcripts. `omnisparse evaluate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from omnisparse.artifact import update_card
from omnisparse.data.corpora import manifest_name, read_manifest
from omnisparse.data.unseen import find_unseen
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.evaluation.alignment import count_confusions
from omnisparse.evaluation.breakdown import by_length, by_speaker
from omnisparse.evaluation.confidence import paired_difference
from omnisparse.evaluation.evaluate import (
    Decoder,
    Found,
    Task,
    check_scorable,
    evaluate,
    in_turn,
)
from omnisparse.evaluation.heard import Heard
from omnisparse.evaluation.notes import length_note
from omnisparse.evaluation.result import EvaluationResult
from omnisparse.evaluation.transcripts import check_transcripts_path, write_transcripts
from omnisparse.evaluation.workers import Workers
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_account

MAX_CONFUSIONS = 50
"""Number of different errors that a result lists."""

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Gives a progress callback for a task of this name."""


def recognizer_of(loaded: runs.LoadedModel, *, cut_above: float | None = None) -> Recognizer:
    """The recogniser of a model.

    Args:
        loaded: The model.
        cut_above: Length in seconds above which audio is cut at pauses, 0 for never; None for the
            longest utterance that the net was trained on, where it is one that must be cut.

    Raises:
        ValueError: If ``cut_above`` is too small.
    """
    chosen = loaded.cut_above if cut_above is None else cut_above or None
    return Recognizer(
        loaded.model,
        loaded.tokenizer,
        loaded.extractor,
        cut_above=chosen,
        trained_seconds=loaded.trained_seconds,
    )


def decoder_of(
    recognizer: Recognizer, *, beam: int, streaming: bool, heard: Heard | None = None
) -> Decoder:
    """What recognises a test set as a user of the model would, long recordings too.

    Args:
        recognizer: The model.
        beam: Hypotheses kept while decoding; 1 is greedy.
        streaming: Recognise chunk by chunk.
        heard: Keeps features for other models; None keeps nothing.

    Raises:
        ValueError: If ``beam`` is below 1.
    """

    def transcribe(samples: Any) -> str:
        return recognizer.transcribe(samples, beam=beam, streaming=streaming).text

    hears_any_length = recognizer.cut_above is None and recognizer.streams
    return Decoder(
        recognizer.model,
        recognizer.extractor,
        recognizer.tokenizer,
        beam=beam,
        transcribe=transcribe if streaming else None,
        cut_above=recognizer.cut_above,
        transcribe_long=transcribe if hears_any_length else None,
        heard=heard,
    )


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """A test set and a model that recognises it, to be built in any process.

    Attributes:
        model: An artifact or run directory.
        cuts: The utterances.
        beam: Hypotheses kept while decoding; 1 is greedy.
        streaming: Recognise chunk by chunk.
        cut_above: As of :func:`recognizer_of`.
    """

    model: Path
    cuts: Sequence[Any]
    beam: int = 1
    streaming: bool = False
    cut_above: float | None = None

    def build(self, device: torch.device) -> Callable[[Task], Found]:
        """Load the model onto the device; the result does a task of its decoder."""
        loaded = runs.load_model(self.model)
        loaded.model.to(device)
        recognizer = recognizer_of(loaded, cut_above=self.cut_above)
        decoder = decoder_of(recognizer, beam=self.beam, streaming=self.streaming)
        return lambda task: decoder.run(self.cuts, task)


def recognise(
    model: Path,
    recognizer: Recognizer,
    cuts: Iterable[Any],
    *,
    beam: int = 1,
    streaming: bool = False,
    cut_above: float | None = None,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
    heard: Heard | None = None,
) -> EvaluationResult:
    """Recognises a test set as a user of the model would, long recordings too.

    Args:
        model: Directory of the model.
        recognizer: The same model, in this process.
        cuts: The utterances.
        beam: Hypotheses kept while decoding; 1 is greedy.
        streaming: Recognise chunk by chunk.
        cut_above: As of :func:`recognizer_of`, as the recogniser was made with.
        workers: Processes that recognise, and their device; None for this one and its CPU.
        progress: Called with (utterances done, utterances in all).
        heard: Keeps features in this process for other models of the same cuts; None keeps nothing.

    Raises:
        ValueError: If the model cannot stream, or ``beam`` is below 1.
        DataError: As :func:`omnisparse.evaluation.evaluate.evaluate`.
    """
    ordered = list(cuts)
    decoder = decoder_of(recognizer, beam=beam, streaming=streaming, heard=heard)

    if workers is None or workers.is_plain:
        return evaluate(decoder, ordered, progress=progress, spread=in_turn)
    elsewhere, job = (
        workers,
        Recognition(model=model, cuts=ordered, beam=beam, streaming=streaming, cut_above=cut_above),
    )

    def spread(tasks: Sequence[Task], run: Callable[[Task], Found]) -> Iterable[Found]:
        return elsewhere.map(job, tasks)

    check_scorable(ordered)
    elsewhere.prepare(job)  # before the clock of `evaluate` starts
    return evaluate(decoder, ordered, progress=progress, spread=spread)


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
    cut_above: float | None = None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Recognises a test set and counts the errors.

    Args:
        model: An artifact or run directory.
        manifest: The test set.
        progress: Gives a progress callback.
        beam: Hypotheses kept while decoding; 1 is greedy.
        streaming: Recognise chunk by chunk.
        card: Write the result into the artifact's card.
        against: A second model to recognise with, and to compare.
        cut_above: Length in seconds above which an utterance is cut at pauses, 0 for never; None
            for the longest utterance that the net was trained on, if it is one that must be cut.
        workers: Processes that recognise, and their device; None for this one, on its CPU.
        transcripts: File for every utterance with its errors, ``.txt`` or ``.jsonl``.

    Returns:
        ``EvaluationResult.to_dict()``, ``confusions``, ``by_speaker``, ``by_length``, ``warnings``,
        ``against``, ``transcripts``, ``skipped`` (bad items left out), ``left_out`` (how many by
        reason), the sizes of the model and the bill of its training.

    Raises:
        UsageError: If ``transcripts`` has an unknown suffix, or a stream is to be cut.
        ValueError: If the model cannot stream, or ``beam`` is below 1.
        OmnisparseError: If the model or the test set cannot be used.
    """
    if streaming and cut_above is not None:
        raise UsageError("cut-above goes without streaming: a stream is not cut")
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
        path: recognizer_of(loaded, cut_above=cut_above) for path, loaded in models.items()
    }
    if streaming:
        for recognizer in recognizers.values():
            recognizer.stream(beam=beam)  # one that cannot is told before any time is spent
    results = {}
    heard = None if against is None else Heard()
    for path, recognizer in recognizers.items():
        with progress("recognising") as callback:
            results[path] = recognise(
                path, recognizer, cuts, beam=beam, streaming=streaming, cut_above=cut_above,
                workers=workers, progress=callback, heard=heard,
            )  # fmt: skip
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
    row["left_out"] = dict(Counter(item.reason for item in split.skipped[: split.num_bad]))
    row["warnings"] = [*told, *result.notes(), *_model_notes(recognizers, result)]
    return {
        **row,
        **{key: sizes[key] for key in ("parameters", "nonzero", "bytes")},
        **account.to_dict(),
    }


def _compared(path: Path, other: EvaluationResult, result: EvaluationResult) -> dict[str, Any]:
    """Rate of the second model, and the difference of the first from it."""
    test = paired_difference([other.counts], [result.counts], speakers=result.speakers_of)
    return {"model": str(path), "wer": other.wer, **asdict(test)}


def _model_notes(recognizers: Mapping[Path, Recognizer], result: EvaluationResult) -> list[str]:
    """What the models cannot write of the references, or were not trained to hear."""
    references = [one.reference for one in result.hypotheses]
    seconds = [one.seconds for one in result.hypotheses]
    notes = []
    for path, recognizer in recognizers.items():
        unseen = find_unseen(recognizer.tokenizer, references).describe()
        long = length_note(
            seconds,
            recognizer.trained_seconds,
            cut_above=recognizer.cut_above,
            streams=recognizer.streams,
        )
        notes += [f"{path}: {note}" for note in (unseen, long) if note]
    return notes


def _details(result: EvaluationResult) -> dict[str, Any]:
    """Confusions, and rates by speaker and by length."""
    utterances = result.hypotheses
    confusions = count_confusions((one.reference, one.hypothesis) for one in utterances)
    return {
        "confusions": [one.to_dict() for one in confusions[:MAX_CONFUSIONS]],
        "by_speaker": [group.to_dict() for group in by_speaker(utterances)],
        "by_length": [group.to_dict() for group in by_length(utterances)],
    }
