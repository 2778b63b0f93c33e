from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.search.controller import ControllerConfig, Episode, reinforce
from omnisparse.search.rank_controls import optuna_search, random_search
from omnisparse.search.ranks import NUM_SHARES, RankSpace
from omnisparse.search.rewards import Reward
from omnisparse.sparsity.decomposition import RankBudget, break_even_rank

SHAPES = {"a": (64, 32), "b": (48, 48), "c": (16, 80), "d": (1, 1), "e": (100, 20)}
BUDGET = RankBudget(SHAPES, fixed=500)


def space(share: float = 0.4) -> RankSpace:
    return RankSpace.make(BUDGET, int(share * BUDGET.dense))


@given(
    share=st.floats(0.2, 1.0),
    wanted=st.lists(st.integers(0, NUM_SHARES), min_size=len(SHAPES), max_size=len(SHAPES)),
)
def test_the_wall_never_leaves_the_budget(share: float, wanted: list[int]) -> None:
    within = space(share)
    places = within.walled(wanted)
    ranks = within.ranks(places)
    assert BUDGET.parameters(ranks) <= within.total
    for name, rank in ranks.items():
        assert 1 <= rank <= break_even_rank(*SHAPES[name])


@given(choices=st.lists(st.integers(0, 10**6), min_size=len(SHAPES), max_size=len(SHAPES)))
def test_any_walk_along_the_wall_ends_inside(choices: list[int]) -> None:
    within = space(0.3)
    places: list[int] = []
    spent = 0
    for step, choice in enumerate(choices):
        legal = [index for index, ok in enumerate(within.legal(step, spent)) if ok]
        assert legal, "the wall leaves nothing to choose"
        places.append(legal[choice % len(legal)])
        spent += within.costs[step][places[-1]]
    assert BUDGET.fixed + spent <= within.total


def test_what_is_left_is_shared_out() -> None:
    within = space(0.5)
    smallest = [0] * len(SHAPES)
    assert BUDGET.parameters(within.ranks(smallest)) > 0.9 * within.total


def test_a_budget_that_cannot_be_reached_names_the_range() -> None:
    with pytest.raises(ValueError, match=r"600 parameters cannot be reached .* legal: [\d,]+ to"):
        RankSpace.make(BUDGET, 600)


def planted(places: tuple[int, ...] | list[int]) -> float:
    """Best where b is whole and all others have their smallest rank."""
    best = [0, NUM_SHARES, 0, 0, 0]
    weights = [1.0, 3.0, 1.0, 0.0, 1.0]
    return -sum(
        weight * abs(place - goal) / NUM_SHARES
        for weight, place, goal in zip(weights, places, best, strict=True)
    )


def best(episodes: list[Episode]) -> float:
    return max(episode.reward for episode in episodes)


def test_the_controller_finds_a_planted_optimum_and_beats_random() -> None:
    within = space(0.6)
    start = within.places(BUDGET.uniform(within.total))
    ours, drawn = 0.0, 0.0
    for seed in range(3):
        found, policy = reinforce(within, planted, episodes=150, start=start, seed=seed)
        assert len(found) == 150
        assert planted(policy.best()) > planted(within.walled(start))
        ours += best(found)
        drawn += best(random_search(within, planted, episodes=150, start=start, seed=seed))
    assert ours > drawn
    assert ours / 3 > -0.35


def test_random_choices_stay_beside_the_best_episode_so_far() -> None:
    within = space(0.6)
    start = within.places(BUDGET.uniform(within.total))
    config = ControllerConfig(exploration=1.0)
    found, _ = reinforce(within, planted, episodes=40, start=start, config=config)
    for number, episode in enumerate(found[1:], start=1):
        best_so_far = max(found[:number], key=lambda one: one.reward).places
        spent = 0
        for step, (place, before) in enumerate(zip(episode.places, best_so_far, strict=True)):
            legal = within.legal(step, spent)
            near = [at for at in (before - 1, before, before + 1) if 0 <= at < len(legal)]
            if any(legal[at] for at in near):
                assert place in near
            spent += within.costs[step][place]
    assert len({episode.places for episode in found}) > 5


def test_a_policy_of_an_earlier_round_stays_inside_the_next_budget() -> None:
    wide, narrow = space(0.9), space(0.4)
    starts = [within.places(BUDGET.uniform(within.total)) for within in (wide, narrow)]
    _, policy = reinforce(wide, planted, episodes=30, start=starts[0])
    found, again = reinforce(narrow, planted, episodes=30, start=starts[1], policy=policy)
    assert again is policy
    for episode in found:
        assert BUDGET.parameters(narrow.ranks(episode.places)) <= narrow.total
    other = RankSpace.make(BUDGET, narrow.total, {"a": [0, 3]})
    with pytest.raises(ValueError, match="another grid"):
        reinforce(other, planted, episodes=2, start=[0] * len(SHAPES), policy=policy)


def test_a_policy_that_moves_to_a_smaller_budget_takes_from_all_matrices() -> None:
    wide, narrow = space(0.9), space(0.3)
    start = wide.places(BUDGET.uniform(wide.total))
    _, policy = reinforce(wide, planted, episodes=1, start=start)
    moved = policy.move_to(narrow)
    falls = [before - now for before, now in zip(wide.walled(start), moved, strict=True)]
    fallen = [fall for name, fall in zip(narrow.names, falls, strict=True) if name != "d"]
    assert max(fallen) - min(fallen) <= 1, falls
    assert policy.move_to(narrow) == moved


def test_what_a_test_says_of_a_net_replaces_what_an_earlier_round_preferred() -> None:
    wide, narrow = space(0.9), space(0.5)
    start = wide.places(BUDGET.uniform(wide.total))
    _, policy = reinforce(wide, planted, episodes=1, start=start)
    tested = narrow.walled([7, 0, 5, 2, 9][: len(narrow.names)])
    assert policy.best() != tested
    assert policy.move_to(narrow, tested) == tested
    assert policy.best() == tested
    assert policy.move_to(narrow) == tested


def test_a_search_is_a_function_of_its_seed() -> None:
    within = space(0.6)
    start = within.places(BUDGET.uniform(within.total))
    runs = [
        reinforce(within, planted, episodes=20, start=start, seed=seed)[0] for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_controls_of_optuna_stay_inside_and_find_more_than_their_start(sampler: str) -> None:
    within = space(0.6)
    start = within.places(BUDGET.uniform(within.total))
    found = optuna_search(within, planted, episodes=40, start=start, sampler=sampler)
    assert [len(found), found[0].places] == [40, tuple(within.walled(start))]
    assert best(found) > found[0].reward
    for episode in found:
        assert BUDGET.parameters(within.ranks(episode.places)) <= within.total


@pytest.mark.parametrize(
    ("reward", "error", "expected"),
    [
        (Reward(), 0.25, -0.25),
        (Reward(cap=1.0), 3.0, -1.0),
        (Reward(cap=1.0), math.nan, -1.0),
        (Reward(kind="weighted", weight=0.5), 0.25, -0.25 - 0.5 * 0.5),
        (Reward(kind="amc"), 0.25, -0.25 * math.log(50)),
        (Reward(kind="thresholded", limit=0.3), 0.25, 2.0),
        (Reward(kind="thresholded", limit=0.2), 0.3, -0.5),
        (Reward(kind="thresholded", limit=0.2, punishment="constant"), 0.3, -1.0),
        (Reward(kind="thresholded", limit=0.2, punishment="distance"), 0.3, -1.0),
    ],
)
def test_rewards_on_cases_by_hand(reward: Reward, error: float, expected: float) -> None:
    assert reward(error, parameters=50, dense=100) == pytest.approx(expected)


def test_unknown_rewards_are_named() -> None:
    with pytest.raises(ValueError, match="reward kind is 'best'; legal: walled, weighted"):
        Reward(kind="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit is 0"):
        Reward(kind="thresholded", limit=0.0)
