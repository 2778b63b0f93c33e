"""What a rank search by reinforcement is compared with, at the same number of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import optuna
import torch

from omnisparse.search.controller import Episode, Evaluate
from omnisparse.search.genetic import ask
from omnisparse.search.ranks import RankSpace

Sampler = Literal["tpe", "nsga2"]


def random_search(
    space: RankSpace,
    evaluate: Evaluate,
    *,
    episodes: int,
    start: Sequence[int],
    seed: int = 0,
    on_episode: Callable[[Episode], None] = lambda episode: None,
) -> list[Episode]:
    """Places drawn at random, brought inside the budget in a random order of the matrices.

    Args:
        space: What there is to choose.
        evaluate: The reward of places.
        episodes: Candidates to evaluate.
        start: Evaluated first.
        seed: Of the draws.
        on_episode: Told of every candidate.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Episode] = []
    wanted: Sequence[int] = start
    while len(found) < episodes:
        places = tuple(space.walled(wanted))
        episode = Episode(places, evaluate(places))
        found.append(episode)
        on_episode(episode)
        wanted = [
            int(torch.randint(len(options), (), generator=generator)) for options in space.choices
        ]
        wanted = _fitted(space, wanted, generator)
    return found


def _fitted(space: RankSpace, wanted: list[int], generator: torch.Generator) -> list[int]:
    """Lower places of matrices in a random order until the budget holds.

    The wall alone would take all from the matrices that are decided last.
    """
    wanted = list(wanted)
    room = space.total - space.budget.fixed

    def cost() -> int:
        return sum(costs[place] for costs, place in zip(space.costs, wanted, strict=True))

    while cost() > room and any(wanted):
        index = int(torch.randint(len(wanted), (), generator=generator))
        wanted[index] = max(0, wanted[index] - 1)
    return wanted


def optuna_search(
    space: RankSpace,
    evaluate: Evaluate,
    *,
    episodes: int,
    start: Sequence[int],
    sampler: Sampler,
    seed: int = 0,
    on_episode: Callable[[Episode], None] = lambda episode: None,
) -> list[Episode]:
    """TPE or NSGA-II of optuna over the places, brought inside the budget as in `random_search`.

    Args:
        space: What there is to choose.
        evaluate: The reward of places.
        episodes: Candidates to evaluate.
        start: Evaluated first.
        sampler: ``tpe`` or ``nsga2``; the latter with one objective, a genetic search.
        seed: Of the sampler.
        on_episode: Told of every candidate.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            direction="maximize", sampler=_sampler(sampler, episodes=episodes, seed=seed)
        )
        first = space.walled(start)
        study.enqueue_trial(dict(zip(space.names, first, strict=True)))
        found: list[Episode] = []
        for number in range(episodes):
            trial = ask(study)
            wanted = [
                trial.suggest_int(name, 0, len(options) - 1)
                for name, options in zip(space.names, space.choices, strict=True)
            ]
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            places = tuple(space.walled(_fitted(space, wanted, generator)))
            episode = Episode(places, evaluate(places))
            found.append(episode)
            on_episode(episode)
            study.tell(trial, episode.reward)
        return found
    finally:
        optuna.logging.set_verbosity(verbosity)


def _sampler(name: Sampler, *, episodes: int, seed: int) -> optuna.samplers.BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(20, episodes // 8)))
