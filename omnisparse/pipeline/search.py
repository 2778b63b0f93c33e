"""Search of per-layer sparsity in a trained run, without retraining: ``omnisparse search``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnisparse.artifact import planned_bytes
from omnisparse.console import show_faults
from omnisparse.durable import replacing
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.evaluation.account import TrainingAccount
from omnisparse.evaluation.confidence import Interval, confidence_interval
from omnisparse.evaluation.dev_set import DevSet
from omnisparse.evaluation.pareto import ResultRow, plot_pareto, write_csv
from omnisparse.evaluation.wer import (
    character_errors,
    corpus_wer,
    word_errors,
)
from omnisparse.evaluation.workers import Workers
from omnisparse.pipeline.extract import contents_of, searched
from omnisparse.pipeline.search_latency import Latency, keeping
from omnisparse.pipeline.search_set import search_set
from omnisparse.pipeline.search_task import Measured, SearchConfig, SearchTask
from omnisparse.runs import directory as runs
from omnisparse.runs.weights import run_name
from omnisparse.search.evaluation_subset import Subset, choose_subset, spearman
from omnisparse.search.front import Front, FrontEntry, read_front
from omnisparse.search.journal import Journal, key_of
from omnisparse.search.pareto import Candidate, search
from omnisparse.search.scores import ItemScores
from omnisparse.sparsity.space import SubnetSpec

FOLDER = "search"
FRONT = "front.json"


def search_run(
    run: Path | None,
    sizes: Sequence[str],
    config: SearchConfig | None = None,
    *,
    manifest: Path | None = None,
    out: Path | None = None,
    on_progress: Callable[..., None] | None = None,
    on_stage: Callable[[str], None] = lambda line: None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Find the best per-layer sparsity of each size of a trained run.

    All measurements are stored in the output folder. So the same call continues a stopped search,
    and another search (more evaluations, other sizes) uses its measurements. The front there keeps
    earlier sizes of the same weights, utterances and objective; any other front is renamed, and
    ``on_stage`` is called with its new name.

    Args:
        run: Run directory; None for ``runs/latest``.
        sizes: In the syntax of ``--size``, except bytes, or all of them times for 40 ms of audio on
            this machine, such as ``0.5ms``; all different.
        config: Number of evaluations, and the space to search.
        manifest: Utterances to search on; the run's dev split if None. The resulting word error
            rates are on these utterances: measure the models on other utterances, too.
        out: Folder of the results; None for ``<run>/search``.
        on_progress: ``(done, total, metrics)``.
        on_stage: Called with a line about each stage.
        workers: Processes that measure, and their device; None for this one and its CPU.

    Returns:
        ``front``, a list of ``{nonzero, wer, spec, ...}``, and facts about the search.

    Raises:
        ValueError: If a size or an option is not legal.
        OmnisparseError: If the run or the utterances cannot be used.
    """
    show_faults()
    started = time.perf_counter()
    config = config or SearchConfig()
    run = runs.latest_run() if run is None else run
    task = SearchTask(run, sizes, config)
    probes = {} if task.timed else task.probes()
    dev = search_set(
        run, task.loaded, manifest=manifest, utterances_per_item=config.utterances_per_item,
        on_stage=on_stage,
    )  # fmt: skip
    out = out or run / FOLDER
    measured = Measured(task, dev, workers)
    journal = Journal(out, {**measured.circumstances(), "utterances": dev.digest()})
    latency = None
    if task.timed:
        on_stage("times of two models on this machine")
        latency = Latency(task, journal)
        latency.take_sizes(sizes)
        probes = task.probes()
    scores = ItemScores(
        measured.scores, dev.tokens() if config.objective == "loss" else dev.words(), journal
    )
    subset = _subset(task, probes, dev, scores, on_progress, on_stage)
    on_stage(f"search on {len(subset.items)} of {subset.num_items} batches of utterances")
    found = search(
        task.space, list(task.totals.values()), lambda spec: scores.rate(spec, subset.items),
        seeds=probes, evaluations=config.evaluations, seed=config.seed, on_progress=on_progress,
    )  # fmt: skip
    on_stage("recognising the whole dev set with the best")
    recognised = _Recognised(measured, dev, journal)
    entries = [
        _entry(task, size, found[total], recognised, journal, latency, on_stage)
        for size, total in task.totals.items()
    ]
    facts = {
        "run": run_name(run),
        "step": task.record.training.optimizer_steps,
        "objective": config.objective,
        "evaluations": sum(len(candidates) for candidates in found.values()),
        "evaluated_now": scores.num_measured,
        "seed": config.seed,
        "subset": {
            "utterances": dev.utterances_of(subset.items),
            "of": dev.num_utterances,
            "spearman": subset.spearman,
            "kendall": subset.kendall,
            "spearman_within_size": subset.spearman_within,
            "finalists_spearman": recognised.agreement(found),
        },
        "seconds": journal.seconds,
        "seconds_now": time.perf_counter() - started,
    }
    front = Front(
        identity=task.record.training.identity, journal=journal.name, entries=tuple(entries)
    ).joined(_take_earlier(out / FRONT, journal, on_stage))
    _write(task, out, front, facts, recognised)
    asked = {entry.key for entry in entries}
    entries = [entry for entry in front.entries if entry.key in asked]
    return {"path": str(out / FRONT), **facts, "front": [entry.to_dict() for entry in entries]}


def _subset(
    task: SearchTask,
    probes: Mapping[int, Sequence[SubnetSpec]],
    dev: DevSet,
    scores: ItemScores,
    on_progress: Callable[..., None] | None,
    on_stage: Callable[[str], None],
) -> Subset:
    """Measure the first subnets on all items, and choose the subset for the other subnets."""
    import numpy as np

    every = [(total, spec) for total, specs in probes.items() for spec in specs]
    on_stage(f"{len(every)} subnets on {dev.num_utterances} utterances")
    rows = []
    for done, (_, spec) in enumerate(every, start=1):
        rows.append(scores.values(spec))
        if on_progress is not None:
            on_progress(done, len(every))
    wanted = max(1, round(task.config.utterances / task.config.utterances_per_item))
    values = np.stack(rows)
    if not np.isfinite(values).all():
        raise OmnisparseError(f"{task.run}: its subnets give losses that are not finite")
    return choose_subset(values, scores.units, [total for total, _ in every], wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Error rates of a subnet on the whole dev set, in percent."""

    wer: float
    interval: Interval
    """Of the WER."""
    cer: float


class _Recognised:
    """Word error rates of subnets on the whole dev set, remembered."""

    def __init__(self, measured: Measured, dev: DevSet, journal: Journal) -> None:
        self._measured, self._dev, self._journal = measured, dev, journal
        self._wers: dict[SubnetSpec, float] = {}

    def __call__(self, spec: SubnetSpec) -> Rates:
        """The rates of a subnet."""
        references = [text for item in self._dev.references for text in item]

        def recognise() -> list[str]:
            found = self._measured.transcripts(spec, range(self._dev.num_items))
            return [text for item in found for text in item]

        texts = self._journal.ask(f"{key_of(spec)} transcripts", recognise)
        words = word_errors(references, texts)
        self._wers[spec] = corpus_wer(words)
        return Rates(
            wer=self._wers[spec],
            interval=confidence_interval(words, speakers=self._dev.speakers),
            cer=corpus_wer(character_errors(references, texts)),
        )

    def agreement(self, found: Mapping[int, Sequence[Candidate]]) -> float | None:
        """Rank correlation of the score with the WER, over all that was recognised."""
        every = [one for candidates in found.values() for one in candidates]
        seen = [one for one in every if one.spec in self._wers]
        return spearman([one.score for one in seen], [self._wers[one.spec] for one in seen])


def _entry(
    task: SearchTask,
    size: str,
    candidates: Sequence[Candidate],
    recognised: _Recognised,
    journal: Journal,
    latency: Latency | None,
    on_stage: Callable[[str], None],
) -> FrontEntry:
    """The best subnet of a size: the one with the lowest WER of finalists and uniform subnet."""
    total = task.totals[size]
    bill = f"{total} evaluated"  # the best of ten searches costs ten searches
    spent = sorted({*(journal.get(bill) or ()), *(key_of(one.spec) for one in candidates)})
    if spent != journal.get(bill):
        journal.put(bill, spent)
    uniform = next(one for one in candidates if one.spec == task.space.spec(total))
    chosen = [*candidates[: task.config.finalists], uniform]
    finalists = {one.spec: (one, recognised(one.spec)) for one in chosen}
    legal = list(finalists)
    if latency is not None:
        legal = keeping(size, {spec: latency.measured(spec) for spec in finalists}, on_stage)
    best, rates = min((finalists[spec] for spec in legal), key=lambda pair: pair[1].wer)
    nonzero = task.supernet.nonzero(best.spec)
    return FrontEntry(
        size=size,
        requested=nonzero if latency else task.supernet.budget.unprunable + total,
        nonzero=nonzero,
        wer=rates.wer,
        wer_low=rates.interval.low,
        wer_high=rates.interval.high,
        cer=rates.cer,
        score=best.score,
        uniform_wer=finalists[uniform.spec][1].wer,
        uniform_score=uniform.score,
        evaluations=len(spent),
        dominated=False,
        spec=best.spec,
        latency_ms=1000 * latency.measured(best.spec) if latency else None,
    )


def _take_earlier(path: Path, journal: Journal, on_stage: Callable[[str], None]) -> Front | None:
    """The front of an earlier search if it can be joined; otherwise it is renamed.

    Args:
        path: Path of the earlier front.
        journal: Journal of the new search.
        on_stage: Called with a message about a front that cannot be joined.
    """
    if not path.exists():
        return None
    try:
        front = read_front(path)
    except FormatError as error:
        name, reason = "unread", str(error)
    else:
        if front.journal == journal.name:
            return front
        name = front.journal
        reason = f"{path}: of other weights, utterances, another objective or an earlier version"
    kept = path.with_name(f"front-{name}.json")
    os.replace(path, kept)
    on_stage(f"{reason}; it is {kept} now")
    return None


def _write(
    task: SearchTask,
    out: Path,
    front: Front,
    facts: Mapping[str, Any],
    recognised: _Recognised,
) -> None:
    """Write the front as JSON, CSV and PNG, and each spec, by its size, for ``extract --spec``."""
    specs = out / "specs"
    specs.mkdir(exist_ok=True)
    for entry in front.entries:
        name = entry.requested if entry.latency_ms is None else entry.size
        with replacing(specs / f"{name}.json") as partial:
            partial.write_text(entry.spec.to_json() + "\n", encoding="utf-8")
    weights = task.weights
    plain = contents_of(
        task.run, task.description, weights, task.record,
        block=task.supernet.block, single=task.description.single,
    )  # fmt: skip
    budget = task.supernet.budget
    rows = []
    for curve, seconds in (("searched", float(facts["seconds"])), ("uniform", 0.0)):
        for entry in front.entries:
            spec, contents = entry.spec, searched(plain, entry)
            if curve == "uniform":
                contents = plain
                if entry.latency_ms is None:
                    spec = task.plain_space.spec(entry.requested - budget.unprunable)
                elif entry.size in task.totals:
                    spec = task.space.spec(task.totals[entry.size])
                else:  # of an earlier search, whose times are not modelled now
                    continue
            rates = recognised(spec)
            planned = vars(replace(contents, spec=spec))
            rows.append(
                ResultRow(
                    curve=curve,
                    size=entry.size,
                    parameters=budget.dense_parameters,
                    nonzero=task.supernet.nonzero(spec),
                    bytes=planned_bytes(dict(weights), spec.counts(budget.prunable), **planned),
                    wer=rates.wer,
                    wer_low=rates.interval.low,
                    wer_high=rates.interval.high,
                    seconds=seconds,
                    account=TrainingAccount.from_dict(contents.source),
                )
            )
    write_csv(rows, out / "front.csv")
    plot_pareto(
        rows, out / "front.png", title=f"{run_name(task.run)}: dev set, searched and uniform"
    )
    with replacing(out / FRONT) as partial:  # last: if it exists, the others exist, too
        partial.write_text(front.to_json(facts), encoding="utf-8")
