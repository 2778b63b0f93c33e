"""Search of SVD ranks in a trained run, without retraining: ``omnisparse search --ranks``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch

from omnisparse.durable import replacing
from omnisparse.errors import PositiveInt, Range, UsageError, check_ranges
from omnisparse.evaluation.confidence import Interval, confidence_interval
from omnisparse.evaluation.dev_set import DevSet
from omnisparse.evaluation.wer import corpus_wer, word_errors
from omnisparse.evaluation.workers import Workers
from omnisparse.models.factored import multiplied_out
from omnisparse.pipeline.low_rank import DenseRun, rank_total
from omnisparse.pipeline.search import dev_cuts
from omnisparse.runs import directory as runs
from omnisparse.search.controller import ControllerConfig, Episode, reinforce
from omnisparse.search.evaluation_subset import Subset, choose_subset
from omnisparse.search.journal import Journal
from omnisparse.search.rank_controls import optuna_search, random_search
from omnisparse.search.ranks import RankSpace, ranks_key
from omnisparse.search.rewards import Reward
from omnisparse.sparsity.decomposition import ranks_to_json

FOLDER = "rank_search"
Method = Literal["rl", "random", "tpe", "nsga2"]
_NUM_PROBES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSearchConfig:
    """What a rank search may spend, and how it looks."""

    method: Method = "rl"
    """``rl``: a policy by reinforcement; ``random``, ``tpe`` and ``nsga2`` are its controls."""
    evaluations: PositiveInt = 200
    """Candidates evaluated for each size."""
    objective: Literal["loss", "wer"] = "loss"
    """Error of a candidate: the label loss per token, or word errors per word (slower)."""
    reward: Reward = field(default_factory=Reward)
    """What the policy is paid for; controls are paid for the same."""
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    """How the policy learns."""
    utterances: PositiveInt = 100
    """Utterances of the subset, about; they are chosen in batches."""
    utterances_per_item: PositiveInt = 8
    """Utterances that are computed, and chosen, together."""
    finalists: PositiveInt = 2
    """Best candidates of each size that are recognised on the whole dev set."""
    seed: Annotated[int, Range(minimum=0, maximum=2**32 - 1)] = 0
    """Seed of the search."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_ranges(self, UsageError)
        for name, legal in (("method", get_args(Method)), ("objective", ("loss", "wer"))):
            if getattr(self, name) not in legal:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(legal)}"
                )


class FactoredNet:
    """The net of a run, whose matrices are replaced by products of any ranks.

    Args:
        dense: The run.
        device: Where it computes.
    """

    def __init__(self, dense: DenseRun, device: torch.device) -> None:
        self.dense = dense
        # A run may be factored already, as behind a first round of compression.
        self.model = multiplied_out(runs.load_model(dense.run).model).to(device)
        self.parameters = dict(self.model.named_parameters())
        self.found = dense.decompositions(dense.budget.shapes)

    @torch.no_grad()
    def apply(self, ranks: Mapping[str, int]) -> None:
        """Give the net the products of these ranks; matrices that are not named as trained."""
        for name in self.dense.budget.shapes:
            weight = self.dense.weights[name]
            if name in ranks:
                factors = self.found[name].factors(ranks[name])
                weight = factors.left @ factors.right
            self.parameters[name].copy_(weight)


@dataclass(frozen=True, kw_only=True)
class FactoredScores:
    """Measures factored nets of a run on a dev set, in any process."""

    run: Path
    dev: DevSet
    objective: Literal["loss", "wer"]

    def build(self, device: torch.device) -> Callable[[Any], list[Any]]:
        """Load the run onto the device; the result answers ``((what, ranks), items)``."""
        net = FactoredNet(DenseRun.open(self.run), device)

        def measure(asked: tuple[tuple[str, Mapping[str, int]], tuple[int, ...]]) -> list[Any]:
            (what, ranks), items = asked
            net.apply(ranks)
            if what == "transcripts":
                return self.dev.transcripts(net.model, items)
            if self.objective == "loss":
                return self.dev.losses(net.model, items)
            counted = self.dev.errors(net.model, items)
            return [float(sum(one.errors for one in item)) for item in counted]

        return measure


class RankScores:
    """Errors of factored nets on a dev set, measured at most once each and remembered."""

    def __init__(
        self, dense: DenseRun, dev: DevSet, config: RankSearchConfig, out: Path, workers: Workers
    ) -> None:
        self.dense, self.dev, self.config, self.workers = dense, dev, config, workers
        self.job = FactoredScores(run=dense.run, dev=dev, objective=config.objective)
        self.found = dense.decompositions(dense.budget.shapes)
        kind = workers.device.type
        self.journal = Journal(
            out,
            {
                "identity": dense.record.training.identity,
                "objective": config.objective,
                "utterances_per_item": config.utterances_per_item,
                "utterances": dev.digest(),
                **({} if kind == "cpu" else {"device": kind}),  # it rounds in another way
            },
        )
        per_word = config.objective == "wer"
        self.units = np.asarray(dev.words() if per_word else dev.tokens(), dtype=np.float64)
        self.num_measured = 0

    def values(self, ranks: Mapping[str, int], items: Sequence[int] | None = None) -> Any:
        """``[len(items)]`` summed errors of the items, of all by default."""
        everything = list(range(self.dev.num_items))
        chosen = everything if items is None else list(items)
        key = ranks_key(ranks)
        whole = self.journal.get(f"{key} all")
        if whole is not None:
            return np.asarray(whole)[chosen]

        def measure() -> list[float]:
            self.num_measured += 1
            return self.workers.map_items(self.job, ("score", dict(ranks)), chosen)

        name = "all" if chosen == everything else ",".join(map(str, chosen))
        return np.asarray(self.journal.ask(f"{key} {name}", measure))

    def rate(self, ranks: Mapping[str, int], items: Sequence[int]) -> float:
        """Error per token or word on the items."""
        return float(self.values(ranks, items).sum() / self.units[list(items)].sum())

    def recognised(self, ranks: Mapping[str, int]) -> tuple[float, Interval]:
        """Word error rate on the whole dev set, in percent, and its interval."""

        def recognise() -> list[str]:
            everything = range(self.dev.num_items)
            found = self.workers.map_items(self.job, ("transcripts", dict(ranks)), everything)
            return [text for item in found for text in item]

        texts = self.journal.ask(f"{ranks_key(ranks)} transcripts", recognise)
        references = [text for item in self.dev.references for text in item]
        words = word_errors(references, texts)
        return corpus_wer(words), confidence_interval(words, speakers=self.dev.speakers)


def search_ranks(
    run: Path | None,
    sizes: Sequence[str],
    config: RankSearchConfig | None = None,
    *,
    manifest: Path | None = None,
    out: Path | None = None,
    on_progress: Callable[..., None] | None = None,
    on_stage: Callable[[str], None] = lambda line: None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Find the ranks of every prunable matrix of a trained run, for each size.

    In the style of ShrinkML (Dudziak et al. 2019, arXiv:1907.03540): an agent picks a rank for one
    matrix after the other and is paid for the error of the factored net on a small, representative
    set. Deviations: see :mod:`omnisparse.search.controller` and ``rewards``; errors are measured
    without retraining. What was measured is kept, so that a search that was stopped goes on with
    the same episodes.

    Args:
        run: Run directory; None for ``runs/latest``.
        sizes: ``16M``, ``25%``, or ``3x`` for a third of the factorable weights.
        config: What may be spent, and how to look.
        manifest: Utterances to search on; the run's dev split if None.
        out: Folder of the results; None for ``<run>/rank_search``.
        on_progress: ``(done, total, metrics)``.
        on_stage: Told what begins.
        workers: Processes that measure, and their device; None for this one and its CPU.

    Returns:
        ``front``, a list of ``{size, nonzero, wer, ranks, ...}``, and how it came about.

    Raises:
        ValueError: If a size or an option is not legal.
        OmnisparseError: If the run or the utterances cannot be used.
    """
    from omnisparse.data.corpora import load_manifest

    started = time.perf_counter()
    config = config or RankSearchConfig()
    run = runs.latest_run() if run is None else run
    if not sizes:
        raise UsageError("sizes names no size; one or more, such as 50%,3x")
    dense = DenseRun.open(run)
    spaces = {
        size: RankSpace.make(dense.budget, rank_total(dense, size)) for size in dict.fromkeys(sizes)
    }
    on_stage("features of the dev set")
    loaded = runs.load_model(run)
    rate = loaded.extractor.sampling_rate
    if manifest is not None:
        cuts = load_manifest(manifest, sampling_rate=rate, tell=on_stage)
    else:
        cuts = dev_cuts(run, rate, on_stage)
    dev = DevSet(
        cuts,
        extractor=loaded.extractor,
        tokenizer=loaded.tokenizer,
        utterances_per_item=config.utterances_per_item,
    )
    out = out or run / FOLDER
    scores = RankScores(dense, dev, config, out, workers or Workers())
    subset = _subset(scores, spaces, on_stage)
    front = []
    for size, space in spaces.items():
        on_stage(f"{size}: {config.evaluations} candidates by {config.method}")
        episodes = _episodes(scores, space, subset.items, config, on_progress)
        front.append(_entry(scores, space, size, episodes, subset.items))
    facts = {
        "run": run.name,
        "method": config.method,
        "reward": config.reward.kind,
        "objective": config.objective,
        "evaluations": config.evaluations * len(spaces),
        "evaluated_now": scores.num_measured,
        "seed": config.seed,
        "subset": {
            "utterances": dev.utterances_of(subset.items),
            "of": dev.num_utterances,
            "spearman": subset.spearman,
            "kendall": subset.kendall,
            "spearman_within_size": subset.spearman_within,
        },
        "seconds": scores.journal.seconds,
        "seconds_now": time.perf_counter() - started,
    }
    path = out / f"front-{config.method}-{config.seed}.json"
    for entry in front:
        with replacing(out / _spec_name(entry, config)) as partial:
            partial.write_text(ranks_to_json(entry["ranks"]) + "\n", encoding="utf-8")
    with replacing(path) as partial:
        partial.write_text(json.dumps({**facts, "front": front}, indent=1) + "\n", encoding="utf-8")
    return {"path": str(path), **facts, "front": front}


def _spec_name(entry: Mapping[str, Any], config: RankSearchConfig) -> str:
    size = re.sub(r"[^\w.]", "", str(entry["size"]).replace("%", "pct"))
    return f"ranks-{size}-{config.method}-{config.seed}.json"


def _subset(
    scores: RankScores, spaces: Mapping[str, RankSpace], on_stage: Callable[[str], None]
) -> Subset:
    """Measure a few candidates of each size on everything, and choose what ranks them alike."""
    rows, groups = [], []
    on_stage(f"{_NUM_PROBES * len(spaces)} candidates on {scores.dev.num_utterances} utterances")
    for size, space in spaces.items():
        uniform = scores.dense.budget.uniform(space.total)
        candidates = [uniform, scores.dense.budget.by_energy(space.total, scores.found)]
        drawn = random_search(
            space, lambda places: 0.0, episodes=_NUM_PROBES - 1, start=space.places(uniform),
            seed=scores.config.seed,
        )  # fmt: skip
        candidates += [space.ranks(one.places) for one in drawn[1:]]
        for ranks in candidates:
            rows.append(scores.values(ranks))
            groups.append(size)
    wanted = max(1, round(scores.config.utterances / scores.config.utterances_per_item))
    return choose_subset(np.stack(rows), scores.units, groups, wanted)


def _episodes(
    scores: RankScores,
    space: RankSpace,
    items: Sequence[int],
    config: RankSearchConfig,
    on_progress: Callable[..., None] | None,
) -> list[Episode]:
    """The candidates of one size by the method that was chosen."""
    done = 0

    def evaluate(places: Sequence[int]) -> float:
        nonlocal done
        ranks = space.ranks(places)
        parameters = space.budget.parameters(ranks)
        reward = config.reward(scores.rate(ranks, items), parameters, space.budget.dense)
        done += 1
        if on_progress is not None:
            on_progress(done, config.evaluations, {"reward": reward})
        return reward

    start = space.places(space.budget.uniform(space.total))
    shared: dict[str, Any] = {"episodes": config.evaluations, "start": start, "seed": config.seed}
    if config.method == "rl":
        return reinforce(space, evaluate, config=config.controller, **shared)[0]
    if config.method == "random":
        return random_search(space, evaluate, **shared)
    return optuna_search(space, evaluate, sampler=config.method, **shared)


def _entry(
    scores: RankScores,
    space: RankSpace,
    size: str,
    episodes: Sequence[Episode],
    items: Sequence[int],
) -> dict[str, Any]:
    """The best of a size on the whole dev set, beside uniform and energy ranks."""
    ordered = sorted(dict.fromkeys(episodes), key=lambda episode: -episode.reward)
    finalists = [space.ranks(one.places) for one in ordered[: scores.config.finalists]]
    rates = [scores.recognised(ranks) for ranks in finalists]
    best = min(range(len(rates)), key=lambda index: rates[index][0])
    controls = {
        "uniform": space.budget.uniform(space.total),
        "energy": space.budget.by_energy(space.total, scores.found),
    }
    entry: dict[str, Any] = {
        "size": size,
        "nonzero": space.budget.parameters(finalists[best]),
        "compression": space.budget.dense / space.budget.parameters(finalists[best]),
        "wer": rates[best][0],
        "wer_low": rates[best][1].low,
        "wer_high": rates[best][1].high,
        "score": scores.rate(finalists[best], items),
        "evaluations": len(episodes),
        "ranks": finalists[best],
        "rewards": [episode.reward for episode in episodes],
    }
    for name, ranks in controls.items():
        entry[f"{name}_wer"] = scores.recognised(ranks)[0]
        entry[f"{name}_score"] = scores.rate(ranks, items)
    return entry
