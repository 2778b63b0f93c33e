"""Search of per-layer sparsity in a trained run, without retraining: ``omnisparse search``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from omnisparse import runs
from omnisparse.artifact import planned_bytes
from omnisparse.config import CorpusConfig, config_from_dict
from omnisparse.data.corpora import load_manifest
from omnisparse.durable import replacing
from omnisparse.errors import FormatError, OmnisparseError, UsageError
from omnisparse.evaluation.account import TrainingAccount
from omnisparse.evaluation.compare import ResultRow, plot_pareto, write_csv
from omnisparse.evaluation.dev_set import DevSet
from omnisparse.evaluation.wer import ErrorCounts, bootstrap_interval, corpus_wer
from omnisparse.runs_account import read_record
from omnisparse.runs_extract import contents_of, searched
from omnisparse.search.evaluation_subset import Subset, choose_subset, spearman
from omnisparse.search.front import Front, FrontEntry, read_front
from omnisparse.search.journal import Journal, key_of
from omnisparse.search.pareto import Candidate, search
from omnisparse.search.scores import ItemScores
from omnisparse.sparsity.allocation import allocate
from omnisparse.sparsity.keys import parse_block
from omnisparse.sparsity.space import MAX_SPREAD, SparsitySpace, SubnetSpec, subnet_generator
from omnisparse.sparsity.supernet import Supernet

Objective = Literal["loss", "wer"]
FOLDER = "search"
FRONT = "front.json"
_RANDOM_PROBES = 2
_LAYER_LEVELS = 17
_SEEDS = 2**32  # that the sampler takes


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What a search may spend, and where it looks."""

    evaluations: int = 200
    """Subnets evaluated, of all sizes together."""
    objective: Objective = "loss"
    """What is minimised: the label loss per token, or word errors per word (slower)."""
    utterances: int = 100
    """Utterances of the subset, about; they are chosen in batches."""
    utterances_per_item: int = 8
    """Utterances that are computed, and chosen, together."""
    finalists: int = 2
    """Best subnets of each size, beside the uniform one, recognised on the whole dev set."""
    layer_groups: tuple[str, ...] = ()
    """Expressions of matrices that share a density; by layer if empty."""
    spread: float = 3.0
    """Densities lie within a factor of 1 + this of the mean, before the total is restored."""
    seed: int = 0
    """Seed of the evolution."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("evaluations", "utterances", "utterances_per_item", "finalists"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; at least 1")
        if self.objective not in get_args(Objective):
            legal = ", ".join(get_args(Objective))
            raise UsageError(f"objective {self.objective!r} is not known; legal: {legal}")
        if not 0 < self.spread <= MAX_SPREAD:
            raise UsageError(f"spread is {self.spread}; above 0, at most {MAX_SPREAD:g}")
        if not 0 <= self.seed < _SEEDS:
            raise UsageError(f"seed is {self.seed}; from 0 to {_SEEDS - 1}")


def search_run(
    run: Path | None,
    sizes: Sequence[str],
    config: SearchConfig | None = None,
    *,
    manifest: Path | None = None,
    out: Path | None = None,
    on_progress: Callable[..., None] | None = None,
    on_stage: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Find the best per-layer sparsity of each size of a trained run.

    What was measured is kept in the output folder: a search that was stopped at any moment is
    continued by the same call, and another one (more evaluations, other sizes) starts from it. The
    front there keeps the sizes that were found before in the same weights on the same utterances
    by the same objective.

    Args:
        run: Run directory; None for ``runs/latest``.
        sizes: As ``--size`` takes them, but for bytes.
        config: What may be spent, and where to look.
        manifest: Utterances to search on; the run's dev split if None. The word error rates found
            are of the utterances that were searched on: measure the models on others.
        out: Folder of the results; None for ``<run>/search``.
        on_progress: ``(done, total, metrics)``.
        on_stage: Told what begins.

    Returns:
        ``front``, a list of ``{nonzero, wer, spec, ...}``, and how it came about.

    Raises:
        ValueError: If a size or an option is not legal.
        OmnisparseError: If the run or the utterances cannot be used.
    """
    started = time.perf_counter()
    config = config or SearchConfig()
    run = runs.latest_run() if run is None else run
    task = _Task(run, sizes, config)
    probes = task.probes()
    cuts = load_manifest(manifest) if manifest is not None else _dev_cuts(run)
    on_stage("features of the dev set")
    loaded = task.loaded
    dev = DevSet(
        cuts, extractor=loaded.extractor, tokenizer=loaded.tokenizer,
        utterances_per_item=config.utterances_per_item,
    )  # fmt: skip
    out = out or run / FOLDER
    journal = Journal(out, {**task.circumstances(), "utterances": dev.digest()})
    scores = ItemScores(
        task.measure(dev), dev.tokens() if config.objective == "loss" else dev.words(), journal
    )
    subset = _subset(task, probes, dev, scores, on_progress, on_stage)
    on_stage(f"search on {len(subset.items)} of {subset.num_items} batches of utterances")
    found = search(
        task.space, list(task.totals.values()), lambda spec: scores.rate(spec, subset.items),
        seeds=probes, evaluations=config.evaluations, seed=config.seed, on_progress=on_progress,
    )  # fmt: skip
    on_stage("recognising the whole dev set with the best")
    recognised = _Recognised(task, dev, journal)
    entries = [_entry(task, size, found[total], recognised) for size, total in task.totals.items()]
    facts = {
        "run": run.name,
        "step": task.record.training.optimizer_steps,
        "objective": config.objective,
        "evaluations": sum(len(candidates) for candidates in found.values()),
        "evaluated_now": scores.num_measured,
        "seed": config.seed,
        "subset": {
            "utterances": sum(len(dev.batches[item]) for item in subset.items),
            "of": dev.num_utterances,
            "spearman": subset.spearman,
            "kendall": subset.kendall,
            "spearman_within_size": subset.spearman_within,
            "finalists_spearman": recognised.agreement(found),
        },
        "seconds": time.perf_counter() - started,
    }
    front = Front(
        identity=task.record.training.identity, journal=journal.name, entries=tuple(entries)
    ).joined(_earlier(out / FRONT))
    _write(task, out, front, facts, recognised)
    asked = {entry.requested for entry in entries}
    entries = [entry for entry in front.entries if entry.requested in asked]
    return {"path": str(out / FRONT), **facts, "front": [entry.to_dict() for entry in entries]}


class _Task:
    """The supernet of a run and the subnets of it that are looked for."""

    def __init__(self, run: Path, sizes: Sequence[str], config: SearchConfig) -> None:
        runs.require_directory(run)
        self.run, self.config = run, config
        description = runs.read_description(run)
        self.weights, checkpoint = runs.newest_weights(run)
        self.record = read_record(checkpoint)
        self.loaded = runs.load_model(checkpoint)
        block = parse_block(description.block)
        self.supernet = Supernet(
            self.loaded.model, prunable=description.prunable, block=block, num_cached_specs=0
        ).eval()
        budget = self.supernet.budget
        if not sizes:
            raise UsageError("sizes names no size; one or more, such as 50%,25%")
        self.totals = {size.strip(): budget.solve(size.strip()) for size in sizes}
        self.space = SparsitySpace(
            {fqn: budget.shapes[fqn] for fqn in budget.prunable},
            spread=config.spread,
            layer_groups=config.layer_groups,
            num_layer_levels=_LAYER_LEVELS,
            block=block,
        )
        distinct = {self.space.spec(total) for total in self.totals.values()}
        if len(distinct) < len(sizes):  # with blocks, two totals may be one subnet
            raise UsageError(f"sizes {','.join(sizes)}: two of them are the same size")

    def circumstances(self) -> dict[str, Any]:
        """What a measurement depends on, beside the spec and the utterances."""
        digest = hashlib.sha256()
        for name, tensor in self.loaded.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.float().numpy().tobytes())
        return {
            "weights": digest.hexdigest(),
            "block": list(self.supernet.block),
            "prunable": list(self.supernet.prunable),
            "objective": self.config.objective,
            "utterances_per_item": self.config.utterances_per_item,
        }

    def measure(self, dev: DevSet) -> Callable[[SubnetSpec, Sequence[int]], list[float]]:
        """Loss or errors of a subnet on items of the dev set."""

        def losses(spec: SubnetSpec, items: Sequence[int]) -> list[float]:
            with self.supernet.squashed(spec) as net:
                return dev.losses(net, items)

        def errors(spec: SubnetSpec, items: Sequence[int]) -> list[float]:
            with self.supernet.squashed(spec) as net:
                found = dev.errors(net, items)
            return [float(sum(one.errors for one in counts)) for counts in found]

        return losses if self.config.objective == "loss" else errors

    def probes(self) -> dict[int, list[SubnetSpec]]:
        """Allocations of each size to begin with: uniform, LAMP, half-way, and random ones.

        Raises:
            UsageError: If the evaluations do not suffice for them.
        """
        probes: dict[int, list[SubnetSpec]] = {}
        weights = self.supernet.weights()
        numel = self.space.numel
        for index, total in enumerate(self.totals.values()):
            lamp = allocate(weights, total, "lamp", block=self.supernet.block)
            offsets = self.space.offsets_of(lamp)
            half = {group: offset / 2 for group, offset in offsets.items()}
            generator = subnet_generator(self.config.seed, index, 2)
            drawn = [self.space.sample_offsets(generator) for _ in range(_RANDOM_PROBES)]
            specs = [
                self.space.spec(total),
                SubnetSpec.from_counts(lamp, numel),
                *(self.space.spec(total, choice) for choice in (half, *drawn)),
            ]
            probes[total] = list(dict.fromkeys(specs))
        needed = sum(map(len, probes.values()))
        if self.config.evaluations < needed:
            raise UsageError(
                f"evaluations is {self.config.evaluations}; at least {needed} for these sizes"
            )
        return probes


def _subset(
    task: _Task,
    probes: Mapping[int, Sequence[SubnetSpec]],
    dev: DevSet,
    scores: ItemScores,
    on_progress: Callable[..., None] | None,
    on_stage: Callable[[str], None],
) -> Subset:
    """Measure the first subnets on everything, and choose what the others are measured on."""
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


class _Recognised:
    """Word error rates of subnets on the whole dev set, remembered."""

    def __init__(self, task: _Task, dev: DevSet, journal: Journal) -> None:
        self._task, self._dev, self._journal = task, dev, journal
        self._wers: dict[SubnetSpec, float] = {}

    def __call__(self, spec: SubnetSpec) -> tuple[float, float, float]:
        """WER and the ends of its interval, in percent."""
        question = f"{key_of(spec)} recognised"
        counts = self._journal.get(question)
        if counts is None:
            with self._task.supernet.squashed(spec) as net:
                found = self._dev.errors(net, range(self._dev.num_items))
            counts = [
                [one.substitutions, one.deletions, one.insertions, one.words]
                for item in found
                for one in item
            ]
            self._journal.put(question, counts)
        names = ("substitutions", "deletions", "insertions", "words")
        errors = [ErrorCounts(**dict(zip(names, one, strict=True))) for one in counts]
        low, high = bootstrap_interval(errors)
        self._wers[spec] = corpus_wer(errors)
        return self._wers[spec], low, high

    def agreement(self, found: Mapping[int, Sequence[Candidate]]) -> float | None:
        """Rank correlation of the score with the WER, over all that was recognised."""
        every = [one for candidates in found.values() for one in candidates]
        seen = [one for one in every if one.spec in self._wers]
        return spearman([one.score for one in seen], [self._wers[one.spec] for one in seen])


def _entry(
    task: _Task, size: str, candidates: Sequence[Candidate], recognised: _Recognised
) -> FrontEntry:
    """The best of a size: of the finalists and the uniform subnet the one with the lowest WER."""
    total = task.totals[size]
    uniform = next(one for one in candidates if one.spec == task.space.spec(total))
    chosen = [*candidates[: task.config.finalists], uniform]
    finalists = {one.spec: (one, recognised(one.spec)) for one in chosen}
    best, (wer, low, high) = min(finalists.values(), key=lambda pair: pair[1][0])
    return FrontEntry(
        size=size,
        requested=task.supernet.budget.unprunable + total,
        nonzero=task.supernet.nonzero(best.spec),
        wer=wer,
        wer_low=low,
        wer_high=high,
        score=best.score,
        uniform_wer=finalists[uniform.spec][1][0],
        uniform_score=uniform.score,
        evaluations=len(candidates),
        dominated=False,
        spec=best.spec,
    )


def _earlier(path: Path) -> Front | None:
    """The front that an earlier search left; None where there is none of this format."""
    try:
        return read_front(path)
    except FormatError:
        return None


def _dev_cuts(run: Path) -> Any:
    """The dev split that the run was configured with."""
    from omnisparse.pipeline import load_splits

    path = run / "config.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        corpus: CorpusConfig = config_from_dict(document, source=str(path)).corpus
        dev = load_splits(corpus).dev
    except (OSError, yaml.YAMLError, AttributeError, OmnisparseError) as error:
        reason = " ".join(str(error).split())
        message = f"{run}: its dev split cannot be read ({reason}); name one with --manifest FILE"
        raise OmnisparseError(message) from error
    if len(dev) == 0:
        raise OmnisparseError(f"{run}: it has no dev split; name utterances with --manifest FILE")
    return dev


def _write(
    task: _Task,
    out: Path,
    front: Front,
    facts: Mapping[str, Any],
    recognised: _Recognised,
) -> None:
    """Write the front as JSON, CSV and PNG, and each spec for ``extract --spec``."""
    specs = out / "specs"
    specs.mkdir(exist_ok=True)
    for entry in front.entries:
        with replacing(specs / f"{entry.nonzero}.json") as partial:
            partial.write_text(entry.spec.to_json() + "\n", encoding="utf-8")
    weights = task.weights
    plain = contents_of(task.run, weights, task.record, block=task.supernet.block)
    budget = task.supernet.budget
    rows = []
    for curve, seconds in (("searched", float(facts["seconds"])), ("uniform", 0.0)):
        for entry in front.entries:
            spec, contents = entry.spec, searched(plain, entry)
            if curve == "uniform":
                spec, contents = task.space.spec(entry.requested - budget.unprunable), plain
            wer, low, high = recognised(spec)
            planned = vars(replace(contents, spec=spec))
            rows.append(
                ResultRow(
                    curve=curve,
                    size=entry.size,
                    parameters=budget.dense_parameters,
                    nonzero=task.supernet.nonzero(spec),
                    bytes=planned_bytes(dict(weights), spec.counts(budget.prunable), **planned),
                    wer=wer,
                    wer_low=low,
                    wer_high=high,
                    seconds=seconds,
                    account=TrainingAccount.from_dict(contents.source),
                )
            )
    write_csv(rows, out / "front.csv")
    plot_pareto(rows, out / "front.png", title=f"{task.run.name}: dev set, searched and uniform")
    with replacing(out / FRONT) as partial:  # last: where it is, the others are too
        partial.write_text(front.to_json(facts), encoding="utf-8")
