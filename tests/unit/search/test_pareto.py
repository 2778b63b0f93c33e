"""The search on an analytic objective with a known optimum, and after a kill."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from omnisparse.search.pareto import search
from omnisparse.sparsity.space import SparsitySpace, SubnetSpec

NUM_LAYERS = 10
SHAPES = {f"layer{i}.weight": (40, 30 + 7 * i) for i in range(NUM_LAYERS)}
NUMEL = {fqn: rows * columns for fqn, (rows, columns) in SHAPES.items()}
DENSE = sum(NUMEL.values())
NEED = {fqn: math.exp(((7 * i) % NUM_LAYERS - 4) / 2.5) for i, fqn in enumerate(SHAPES)}
STEEPNESS = 6.0


def loss(spec: SubnetSpec) -> float:
    """Each layer forgives pruning exponentially, some much less than others."""
    counts = spec.counts(NUMEL)
    return sum(NEED[f] * math.exp(-STEEPNESS * counts[f] / NUMEL[f]) for f in NUMEL)


def optimum(total: int) -> float:
    """Water-filling: at the optimum every layer that is neither empty nor full has one slope."""

    def densities(price: float) -> list[float]:
        free = [math.log(NEED[f] * STEEPNESS / (NUMEL[f] * price)) / STEEPNESS for f in NUMEL]
        return [min(1.0, max(0.0, density)) for density in free]

    low, high = 1e-12, 1e6
    for _ in range(200):
        price = math.sqrt(low * high)
        kept = sum(d * n for d, n in zip(densities(price), NUMEL.values(), strict=True))
        low, high = (price, high) if kept > total else (low, price)
    return sum(
        NEED[f] * math.exp(-STEEPNESS * d) for f, d in zip(NUMEL, densities(low), strict=True)
    )


def make_space(**options: object) -> SparsitySpace:
    return SparsitySpace(SHAPES, **{"spread": 3.0, "num_layer_levels": 17, **options})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_comes_near_the_optimum_within_200_evaluations(seed: int) -> None:
    space = make_space()
    totals = [DENSE // 2, DENSE // 4]
    asked: list[SubnetSpec] = []

    def evaluate(spec: SubnetSpec) -> float:
        asked.append(spec)
        return loss(spec)

    found = search(space, totals, evaluate, evaluations=200, seed=seed)
    assert len(asked) == len(set(asked)) <= 200
    assert sorted(found) == sorted(totals)
    for total, candidates in found.items():
        assert all(sum(c.spec.counts(NUMEL).values()) == total for c in candidates)
        scores = [candidate.score for candidate in candidates]
        assert scores == sorted(scores)
        uniform, best = loss(space.spec(total)), optimum(total)
        assert best < uniform
        # Half of what there is to gain over uniform sparsity, at the least.
        assert scores[0] < uniform - 0.5 * (uniform - best)
        assert scores[0] >= best * (1 - 1e-3)  # water-filling is the optimum


def test_seeds_are_evaluated_as_they_are_and_help() -> None:
    space = make_space()
    total = DENSE // 4
    # Counts of another rounding than the space's own: it must come back unchanged.
    counts = space.spec(total, {f"layer{i}": 0.1 * (i - 5) for i in range(NUM_LAYERS)}).counts(
        NUMEL
    )
    first, second = list(counts)[:2]
    counts[first], counts[second] = counts[first] + 3, counts[second] - 3
    seed = SubnetSpec.from_counts(counts, NUMEL)
    found = search(space, [total], loss, seeds={total: [seed]}, evaluations=30)[total]
    assert seed in {candidate.spec for candidate in found}
    assert space.spec(total) in {candidate.spec for candidate in found}
    # What a long search found gives a short one a start that it would not have come to.
    best = search(space, [total], loss, evaluations=200)[total][0]
    short = search(space, [total], loss, evaluations=30)[total][0]
    seeded = search(space, [total], loss, seeds={total: [best.spec]}, evaluations=30)[total][0]
    assert seeded.score <= best.score < short.score


def test_scores_that_are_no_numbers_are_the_worst() -> None:
    space = make_space()
    uniform = space.spec(DENSE // 3)
    found = search(
        space, [DENSE // 3], lambda spec: math.nan if spec == uniform else loss(spec),
        evaluations=25,
    )  # fmt: skip
    assert found[DENSE // 3][-1].spec == uniform


def test_one_group_has_nothing_to_search_and_ends() -> None:
    space = make_space(layer_groups=["layer"])
    found = search(space, [DENSE // 3], loss, evaluations=50)
    assert [candidate.spec for candidate in found[DENSE // 3]] == [space.spec(DENSE // 3)]


def test_progress_counts_evaluations() -> None:
    seen: list[tuple[int, int]] = []
    search(
        make_space(), [DENSE // 3], loss, evaluations=20,
        on_progress=lambda done, total, metrics: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(done, 20) for done in range(1, 21)]


@pytest.mark.parametrize(
    ("totals", "evaluations", "message"),
    [
        ([], 10, "one or more"),
        ([50, 50], 10, "must be one or more different numbers"),
        ([DENSE // 2, DENSE // 3], 1, "evaluations is 1; at least 2"),
        ([DENSE + 1], 10, "out of range"),
    ],
)
def test_illegal_searches(totals: list[int], evaluations: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(make_space(), totals, loss, evaluations=evaluations)


SEARCHER = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from test_pareto import DENSE, loss, make_space
    from omnisparse.search.journal import Journal
    from omnisparse.search.pareto import search
    from omnisparse.search.scores import ItemScores

    deadline = int(sys.argv[2])
    def measure(spec, items):
        if scores.num_measured == deadline:
            os.kill(os.getpid(), signal.SIGKILL)
        return [loss(spec)]

    scores = ItemScores(measure, [1.0], Journal(Path(sys.argv[1]), {}))
    found = search(make_space(), [DENSE // 2, DENSE // 4], scores.rate, evaluations=60)
    print(scores.num_measured)
    for total, candidates in found.items():
        print(total, [(c.score, sorted(c.spec.sparsity.items())) for c in candidates])
    """
)


def run_searcher(folder: Path, deadline: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SEARCHER, str(folder), str(deadline), os.path.dirname(__file__)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.multiprocess
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 after 37 of 60: the rest only is measured, and the result is the same."""
    killed = run_searcher(tmp_path / "killed", 37)
    assert killed.returncode == -signal.SIGKILL
    resumed = run_searcher(tmp_path / "killed", -1)
    alone = run_searcher(tmp_path / "alone", -1)
    assert resumed.returncode == alone.returncode == 0, resumed.stderr + alone.stderr
    measured, *result = resumed.stdout.splitlines()
    everything, *expected = alone.stdout.splitlines()
    assert (int(measured), int(everything)) == (60 - 37, 60)
    assert result == expected
