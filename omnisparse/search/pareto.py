"""Evolutionary search of per-layer sparsity: the best subnet of every size, without retraining.

The genome of a subnet is an offset for each group of layers: the log of its density relative to
the mean. Its size is not a gene: proposals take the requested sizes in turn, and
:class:`SparsitySpace` turns any offsets into a spec of exactly that size. Each size is an objective
of its own: a subnet has its score there, and the worst score for all other sizes. So NSGA-II's
fronts hold the best of every size, no size displaces another, and crossover still carries a good
allocation from one size to the next. The best subnet of each size is the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from omnisparse.search.genetic import ask
from omnisparse.sparsity.space import SparsitySpace, SubnetSpec, subnet_generator

Evaluate = Callable[[SubnetSpec], float]
"""Gives the score of a subnet; lower is better."""

Progress = Callable[[int, int, Mapping[str, float]], None]
"""``(evaluations done, evaluations in all, best score by size)``."""

_ELSEWHERE = 1e12
"""Objective value for every size other than the subnet's own."""
_WORST = 1e9
"""Replaces a score that is NaN."""
_ASKS_PER_EVALUATION = 20
_MIN_PER_SIZE, _MAX_PER_SIZE, _GENERATIONS = 6, 20, 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subnet that was evaluated.

    Attributes:
        total: Prunable weights it keeps.
        score: Its score.
        spec: The subnet.
    """

    total: int
    score: float
    spec: SubnetSpec


class Evaluations:
    """Scores by spec: no spec is evaluated twice, and the number of evaluations is limited.

    Args:
        evaluate: Scores a subnet.
        limit: Most evaluations.
        on_progress: Called after each.
    """

    def __init__(self, evaluate: Evaluate, limit: int, on_progress: Progress | None = None) -> None:
        self.limit = limit
        self.scores: dict[SubnetSpec, Candidate] = {}
        self._evaluate, self._on_progress = evaluate, on_progress

    @property
    def exhausted(self) -> bool:
        """Whether no new spec may be evaluated."""
        return len(self.scores) >= self.limit

    def __call__(self, spec: SubnetSpec, total: int) -> float:
        """The score of a spec; NaN becomes the worst score."""
        known = self.scores.get(spec)
        if known is None:
            score = self._evaluate(spec)
            score = score if math.isfinite(score) else _WORST
            known = self.scores[spec] = Candidate(total, score, spec)
            if self._on_progress is not None:
                best = {f"best@{t}": found[0].score for t, found in self.by_total().items()}
                self._on_progress(len(self.scores), self.limit, best)
        return known.score

    def by_total(self) -> dict[int, list[Candidate]]:
        """All candidates by the weights they keep, the best first; in ties the earlier first."""
        found: dict[int, list[Candidate]] = {}
        for candidate in self.scores.values():
            found.setdefault(candidate.total, []).append(candidate)
        return {total: sorted(c, key=lambda one: one.score) for total, c in sorted(found.items())}


def search(
    space: SparsitySpace,
    totals: Sequence[int],
    evaluate: Evaluate,
    *,
    seeds: Mapping[int, Sequence[SubnetSpec]] | None = None,
    evaluations: int = 200,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> dict[int, list[Candidate]]:
    """Search for the best subnet of each total.

    The search is a function of its arguments and of the scores. If ``evaluate`` stores its results
    (see ``search.journal``), a second call continues a killed first one.

    Args:
        space: Groups of layers, and the range and grid of their offsets.
        totals: Prunable weights to keep, one per requested size; all different.
        evaluate: Scores a subnet; called at most once per spec.
        seeds: Allocations to start with, by total. They are evaluated unchanged; their nearest
            points in the space become the first parents. Uniform sparsity is always one of them.
        evaluations: Most calls of ``evaluate``.
        seed: Seed of the evolution.
        on_progress: Called after every evaluation.

    Returns:
        All evaluated candidates by total, the best first.

    Raises:
        ValueError: If there is no total, one is out of range or repeated, or ``evaluations`` is
            too small for the seeds.

    Source: Deb et al. 2002 (NSGA-II), optuna's implementation. Yang et al. 2022 (arXiv:2110.08352)
    search their supernet with "typical search algorithms, e.g., evolutionary search"; which one is
    not published in readable form.
    Deviation: after the first generation, every second proposal is not NSGA-II's but a neighbour of
    the best so far (one group denser, another sparser). With 200 evaluations of ten groups, this
    closes most of the gap that crossover and mutation leave.
    """
    first = {total: [space.spec(total), *(seeds or {}).get(total, ())] for total in totals}
    if not first or len(first) < len(totals):
        raise ValueError(f"totals {list(totals)} must be one or more different numbers")
    needed = len({spec for specs in first.values() for spec in specs})
    if evaluations < needed:
        raise ValueError(f"evaluations is {evaluations}; at least {needed} are needed here")
    scores = Evaluations(evaluate, evaluations, on_progress)
    for total, specs in first.items():
        for spec in specs:
            scores(spec, total)
    _evolve(space, first, scores, seed)
    return scores.by_total()


def _evolve(
    space: SparsitySpace,
    first: Mapping[int, Sequence[SubnetSpec]],
    scores: Evaluations,
    seed: int,
) -> None:
    """Take offsets from NSGA-II until the evaluations are used up."""
    import optuna

    totals = list(first)
    per_size = scores.limit // (_GENERATIONS * len(totals))
    per_size = max(_MIN_PER_SIZE, min(_MAX_PER_SIZE, per_size))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        sampler = optuna.samplers.NSGAIISampler(population_size=per_size * len(totals), seed=seed)
        study = optuna.create_study(directions=["minimize"] * len(totals), sampler=sampler)
        for offsets in _first_generation(space, first, per_size, seed):
            study.enqueue_trial(offsets)
        best: dict[int, tuple[float, dict[str, float]]] = {}
        for number in range(_ASKS_PER_EVALUATION * scores.limit):
            if scores.exhausted:
                return
            turn, index = divmod(number, len(totals))
            total = totals[index]
            if turn >= per_size and turn % 2:
                # Every fourth neighbour comes from the best of the next size: a good allocation
                # for one size is often nearly good for another.
                source = totals[(index + 1) % len(totals)] if turn % 8 == 1 else total
                generator = subnet_generator(seed, number, 1)
                study.enqueue_trial(_exchange(space, best[source][1], generator))
            trial = ask(study)
            offsets = {
                group: space.on_grid(trial.suggest_float(group, -space.reach, space.reach))
                for group in space.groups
            }
            score = scores(space.spec(total, offsets), total)
            if total not in best or score < best[total][0]:
                best[total] = score, offsets
            objectives = [_ELSEWHERE] * len(totals)
            objectives[index] = score
            study.tell(trial, objectives)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _first_generation(
    space: SparsitySpace, first: Mapping[int, Sequence[SubnetSpec]], per_size: int, seed: int
) -> list[dict[str, float]]:
    """Offsets of the first parents; the sizes take turns.

    First the seeds, then the points half-way between each seed and uniform sparsity, then seeds
    moved at random by up to half the range.
    """
    by_size: list[list[dict[str, float]]] = []
    for index, specs in enumerate(first.values()):
        starts = [space.offsets_of(spec.counts(space.numel)) for spec in specs]
        halves = [{group: value / 2 for group, value in start.items()} for start in starts[1:]]
        chosen = (starts + halves)[:per_size]
        generator = subnet_generator(seed, index, 0)
        while len(chosen) < per_size:
            moves = space.sample_offsets(generator)
            start = starts[len(chosen) % len(starts)]
            moved = {group: start[group] + move / 2 for group, move in moves.items()}
            limit = space.reach
            chosen.append({group: min(limit, max(-limit, at)) for group, at in moved.items()})
        by_size.append(chosen)
    return [offsets for turn in zip(*by_size, strict=True) for offsets in turn]


def _exchange(
    space: SparsitySpace, offsets: Mapping[str, float], generator: torch.Generator
) -> dict[str, float]:
    """A neighbour of an allocation: one group gets denser, another sparser."""
    groups = list(offsets)
    order = torch.randperm(len(groups), generator=generator).tolist()
    steps = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    moved = dict(offsets)
    for index, sign, step in zip(order, (1.0, -1.0), steps, strict=False):
        at = moved[groups[index]] + sign * step * space.reach / 2
        moved[groups[index]] = space.on_grid(min(space.reach, max(-space.reach, at)))
    return moved
