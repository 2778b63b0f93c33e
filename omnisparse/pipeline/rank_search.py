"""Search of SVD ranks in a trained run, without retraining: ``omnisparse search --ranks``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np

from omnisparse.durable import replacing
from omnisparse.errors import NonNegativeFloat, PositiveInt, Range, UsageError, check_ranges
from omnisparse.evaluation.reward_plot import Curve, plot_rewards
from omnisparse.evaluation.workers import Workers
from omnisparse.models.validation import RankScheme
from omnisparse.pipeline.low_rank import DenseRun, parse_times, rank_total
from omnisparse.pipeline.rank_latency import timed_budget
from omnisparse.pipeline.rank_scores import Objective, RankScores
from omnisparse.pipeline.search_set import search_set
from omnisparse.runs import directory as runs
from omnisparse.runs.weights import run_name
from omnisparse.search.controller import ControllerConfig, Episode, Policy, reinforce
from omnisparse.search.evaluation_subset import Subset, choose_subset
from omnisparse.search.rank_controls import optuna_search, random_search
from omnisparse.search.ranks import RankSpace
from omnisparse.search.rewards import Reward
from omnisparse.search.sensitivity import Sensitivity, measure_sensitivity, places_to_try
from omnisparse.sparsity.decomposition import RankBudget, ranks_to_json

FOLDER = "rank_search"
_FRONT = "front"
Method = Literal["rl", "random", "tpe", "nsga2"]
_NUM_PROBES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSearchConfig:
    """What a rank search may spend, and how it looks."""

    method: Method = "rl"
    """``rl``: a policy by reinforcement; ``random``, ``tpe`` and ``nsga2`` are its controls."""
    evaluations: PositiveInt = 200
    """Candidates evaluated for each size; those of the sensitivity test are among them."""
    budget: Literal["parameters", "latency"] = "parameters"
    """What a size limits: parameters of the net, or the measured time of its factorable products on
    this machine, of which ``2x`` is the half. Both factors of a product are multiplied in turn."""
    scheme: RankScheme = "stacked"
    """What a product is of in an LSTM layer: see :mod:`omnisparse.models.factored`."""
    sensitivity: bool = True
    """Whether a part of the evaluations, a third at most, first tries every matrix alone. The
    search, whatever its method, then starts at the ranks that would be best if what single
    matrices cost just added up. With too few evaluations it starts at ranks of equal energy."""
    tolerance: NonNegativeFloat | None = 0.5
    """After a sensitivity test, ranks that alone raise the error by more than this share of it are
    not looked at (more is tolerated where the size asks for it); None looks at all."""
    objective: Objective = "loss"
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
        for name, legal in (
            ("method", get_args(Method)),
            ("objective", get_args(Objective)),
            ("budget", ("parameters", "latency")),
            ("scheme", get_args(RankScheme)),
        ):
            if getattr(self, name) not in legal:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(legal)}"
                )
        if self.budget == "latency" and self.scheme != "stacked":
            raise UsageError(f"budget latency times products of scheme stacked, not {self.scheme}")


class RankSearch:
    """A run, the utterances to search on, and a space of ranks for each size.

    Args:
        run: Run directory. A net that is factored already loses ranks, and gets none back.
        sizes: ``16M``, ``25%``, or ``3x`` for a third of the factorable weights.
        config: What may be spent, and how to look.
        manifest: Utterances to search on; the run's dev split if None.
        out: Folder of what was measured; None for ``<run>/rank_search``.
        on_progress: ``(done, total, metrics)``.
        on_stage: Told what begins.
        workers: Processes that measure, and their device; None for this one and its CPU.

    Raises:
        ValueError: If a size or an option is not legal.
        OmnisparseError: If the run or the utterances cannot be used.
    """

    def __init__(
        self,
        run: Path,
        sizes: Sequence[str],
        config: RankSearchConfig,
        *,
        manifest: Path | None = None,
        out: Path | None = None,
        on_progress: Callable[..., None] | None = None,
        on_stage: Callable[[str], None] = lambda line: None,
        workers: Workers | None = None,
    ) -> None:
        self.config, self.on_progress, self.on_stage = config, on_progress, on_stage
        if not sizes:
            raise UsageError("sizes names no size; one or more, such as 50%,3x")
        self.dense = dense = DenseRun.open(run, config.scheme)
        self.limits = dense.budget.limits
        sizes = list(dict.fromkeys(sizes))
        if config.budget == "parameters":
            totals = {size: rank_total(dense, size) for size in sizes}
            self._make_spaces(dense.budget, totals)
        else:
            speedups = {size: parse_times(size) for size in sizes}
        loaded = runs.load_model(run)
        self.dev = search_set(
            run, loaded, manifest=manifest, utterances_per_item=config.utterances_per_item,
            on_stage=on_stage,
        )  # fmt: skip
        self.out = out or run / FOLDER
        self.scores = RankScores(
            dense, self.dev, self.out, workers or Workers(), objective=config.objective,
            utterances_per_item=config.utterances_per_item,
        )  # fmt: skip
        if config.budget == "latency":
            on_stage("times of the products on this machine")
            timed = timed_budget(dense.budget, self.scores.journal)
            totals = {size: int(timed.dense / times) for size, times in speedups.items()}
            self._make_spaces(timed, totals)
        self.subset = self._subset()
        self.items = self.subset.items

    def _make_spaces(self, budget: RankBudget, totals: Mapping[str, int]) -> None:
        self.spaces = {
            size: RankSpace.make(budget, total, limits=self.limits)
            for size, total in totals.items()
        }

    def _subset(self) -> Subset:
        """Measure a few candidates of each size on everything; choose what ranks them alike."""
        rows, groups = [], []
        count, dev = _NUM_PROBES * len(self.spaces), self.dev
        self.on_stage(f"{count} candidates on {dev.num_utterances} utterances")
        for size, space in self.spaces.items():
            uniform = space.budget.uniform(space.total)
            candidates = [uniform, space.budget.by_energy(space.total, self.scores.found)]
            drawn = random_search(
                space, lambda places: 0.0, episodes=_NUM_PROBES - 1, start=space.places(uniform),
                seed=self.config.seed,
            )  # fmt: skip
            candidates += [space.ranks(one.places) for one in drawn[1:]]
            for ranks in candidates:
                rows.append(self.scores.values(ranks))
                groups.append(size)
        wanted = max(1, round(self.config.utterances / self.config.utterances_per_item))
        return choose_subset(np.stack(rows), self.scores.units, groups, wanted)

    def find(self, size: str, policy: Policy | None = None) -> tuple[dict[str, Any], Policy | None]:
        """The best ranks of a size, beside uniform and energy ranks.

        Args:
            size: One of the sizes.
            policy: One to go on with, as of an earlier round of compression.

        Returns:
            The entry of the front, and the policy of a search by reinforcement.
        """
        config, space = self.config, self.spaces[size]
        self.on_stage(f"{size}: {config.evaluations} candidates by {config.method}")
        space, start, tried = self._start(space)
        if policy is not None:
            start = policy.move_to(space, start if tried else None)
        episodes, policy = self._episodes(space, start, config.evaluations - tried, policy)
        return {**self._entry(space, size, episodes), "sensitivity_evaluations": tried}, policy

    def _start(self, space: RankSpace) -> tuple[RankSpace, list[int], int]:
        """The space to look at, the places to begin with, and the evaluations that this took."""
        tried = places_to_try(len(space.names), self.config.evaluations)
        if not self.config.sensitivity or not tried:
            return space, space.places(space.budget.by_energy(space.total, self.scores.found)), 0
        found = measure_sensitivity(space, self._error, tried=tried)
        if self.config.tolerance is not None:
            space, found = self._sensitive(space, found, self.config.tolerance)
        return space, found.best_places(space), found.evaluations

    def _sensitive(
        self, space: RankSpace, found: Sensitivity, tolerance: float
    ) -> tuple[RankSpace, Sensitivity]:
        """The space without what is known to cost too much."""
        allowed = found.allowed(space, tolerance)
        rows = [
            tuple(row[place] for place in allowed[name])
            for name, row in zip(space.names, found.increases, strict=True)
        ]
        smaller = RankSpace.make(space.budget, space.total, allowed, limits=self.limits)
        return smaller, replace(found, increases=tuple(rows))

    def _error(self, ranks: Mapping[str, int]) -> float:
        return self.scores.rate(ranks, self.items)

    def _episodes(
        self, space: RankSpace, start: Sequence[int], count: int, policy: Policy | None
    ) -> tuple[list[Episode], Policy | None]:
        """The candidates of one size by the method that was chosen."""
        config = self.config
        done = config.evaluations - count

        def evaluate(places: Sequence[int]) -> float:
            nonlocal done
            ranks = space.ranks(places)
            cost = space.budget.parameters(ranks)
            assert cost <= space.total, "a candidate beyond the budget"
            reward = config.reward(self._error(ranks), cost, space.budget.dense)
            done += 1
            if self.on_progress is not None:
                self.on_progress(done, config.evaluations, {"reward": reward})
            return reward

        shared: dict[str, Any] = {"episodes": count, "start": start, "seed": config.seed}
        if config.method == "rl":
            return reinforce(space, evaluate, config=config.controller, policy=policy, **shared)
        if config.method == "random":
            return random_search(space, evaluate, **shared), None
        return optuna_search(space, evaluate, sampler=config.method, **shared), None

    def _entry(self, space: RankSpace, size: str, episodes: Sequence[Episode]) -> dict[str, Any]:
        """The best of a size on the whole dev set, beside uniform and energy ranks."""
        ordered = sorted(dict.fromkeys(episodes), key=lambda episode: -episode.reward)
        finalists = [space.ranks(one.places) for one in ordered[: self.config.finalists]]
        rates = [self.scores.recognised(ranks) for ranks in finalists]
        best = min(range(len(rates)), key=lambda index: rates[index][0])
        controls = {
            "uniform": space.budget.uniform(space.total),
            "energy": space.budget.by_energy(space.total, self.scores.found),
        }
        parameters = self.dense.budget.parameters(finalists[best])
        entry: dict[str, Any] = {
            "size": size,
            "nonzero": parameters,
            "compression": self.dense.budget.dense / parameters,
            "wer": rates[best][0],
            "wer_low": rates[best][1].low,
            "wer_high": rates[best][1].high,
            "score": self._error(finalists[best]),
            "evaluations": self.config.evaluations,
            "ranks": finalists[best],
            "rewards": [episode.reward for episode in episodes],
        }
        if self.config.budget == "latency":
            entry["product_ms"] = space.budget.parameters(finalists[best]) / 1e6
            entry["dense_product_ms"] = space.budget.dense / 1e6
        for name, ranks in controls.items():
            entry[f"{name}_wer"] = self.scores.recognised(ranks)[0]
            entry[f"{name}_score"] = self._error(ranks)
        return entry


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
    set. Deviations: see :mod:`omnisparse.search.controller`, ``rewards`` and ``sensitivity``;
    errors are measured without retraining. What was measured is kept, so that a search that was
    stopped goes on with the same episodes.

    Args:
        run: Run directory; None for ``runs/latest``.
        sizes: As of :class:`RankSearch`, and all that follow.
        config: What may be spent, and how to look.
        manifest: Utterances to search on.
        out: Folder of the results.
        on_progress: ``(done, total, metrics)``.
        on_stage: Told what begins.
        workers: Processes that measure, and their device.

    Returns:
        ``front``, a list of ``{size, nonzero, wer, ranks, ...}``, and how it came about.

    Raises:
        ValueError: If a size or an option is not legal.
        OmnisparseError: If the run or the utterances cannot be used.
    """
    started = time.perf_counter()
    config = config or RankSearchConfig()
    run = runs.latest_run() if run is None else run
    search = RankSearch(
        run, sizes, config, manifest=manifest, out=out, on_progress=on_progress,
        on_stage=on_stage, workers=workers,
    )  # fmt: skip
    front = [search.find(size)[0] for size in search.spaces]
    subset = search.subset
    path = search.out / f"{_FRONT}-{_suffix(config)}.json"
    facts = {
        "run": run_name(run),
        "method": config.method,
        "reward": config.reward.kind,
        "objective": config.objective,
        "budget": config.budget,
        "scheme": config.scheme,
        "evaluations": config.evaluations * len(search.spaces),
        "evaluated_now": search.scores.num_measured,
        "seed": config.seed,
        "journal": search.scores.journal.name,
        "subset": {
            "utterances": search.dev.utterances_of(subset.items),
            "of": search.dev.num_utterances,
            "spearman": subset.spearman,
            "kendall": subset.kendall,
            "spearman_within_size": subset.spearman_within,
        },
        "seconds": search.scores.journal.seconds,
        "seconds_now": time.perf_counter() - started,
    }
    for entry in front:
        with replacing(search.out / _spec_name(entry, config)) as partial:
            partial.write_text(
                ranks_to_json(entry["ranks"], config.scheme) + "\n", encoding="utf-8"
            )
    with replacing(path) as partial:
        partial.write_text(json.dumps({**facts, "front": front}, indent=1) + "\n", encoding="utf-8")
    plots = _plot(search, front)
    return {"path": str(path), "plots": plots, **facts, "front": front}


def _plot(search: RankSearch, front: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw the searches of each size that this folder has, over methods and seeds.

    Only those of the same weights, utterances and objective: their rewards are on one scale.
    """
    config = search.config
    alike = {
        "run": run_name(search.dense.run), "reward": config.reward.kind, "budget": config.budget,
        "scheme": config.scheme, "journal": search.scores.journal.name,
    }  # fmt: skip
    absent = {"budget": "parameters", "scheme": "stacked"}  # in files of older versions
    plots = []
    for size in [entry["size"] for entry in front]:
        curves: dict[str, list[Curve]] = {}
        for method in get_args(Method):
            for path in sorted(search.out.glob(f"{_FRONT}-{method}-*.json")):
                known = json.loads(path.read_text(encoding="utf-8"))
                if any(known.get(key, absent.get(key)) != value for key, value in alike.items()):
                    continue
                for entry in known["front"]:
                    if entry["size"] == size and entry["evaluations"] == config.evaluations:
                        tried = entry.get("sensitivity_evaluations", 0)
                        curves.setdefault(method, []).append((tried, entry["rewards"]))
        place = search.out / f"rewards-{_plain(size)}.png"
        plot_rewards(curves, place, title=f"{run_name(search.dense.run)}: {size}")
        plots.append(str(place))
    return plots


def _spec_name(entry: Mapping[str, Any], config: RankSearchConfig) -> str:
    return f"ranks-{_plain(entry['size'])}-{_suffix(config)}.json"


def _suffix(config: RankSearchConfig) -> str:
    named = "" if config.scheme == "stacked" else f"-{config.scheme}"
    return f"{config.method}{named}-{config.seed}"


def _plain(size: str) -> str:
    """A size as a part of a file name."""
    return re.sub(r"[^\w.]", "", size.replace("%", "pct"))
