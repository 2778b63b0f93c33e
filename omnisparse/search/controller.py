"""A policy that chooses a rank for one matrix after the other, trained by REINFORCE.

In the style of ShrinkML (Dudziak et al. 2019, arXiv:1907.03540): reinforcement learning picks the
SVD rank of each layer of a trained net. Only the abstract was readable. Ours, by choice:

Deviation: an LSTM policy over the matrices in order; an action wall
(:meth:`omnisparse.search.ranks.RankSpace.legal`) as in AMC (He et al. 2018, arXiv:1802.03494) keeps
every episode inside the budget; the advantage is divided by its own running spread; the policy
starts at an allocation that is given (of a sensitivity test, else of equal energy), and is also
trained on the best episodes so far (priority queue training, Abolafia et al. 2018,
arXiv:1801.03526), because some hundred evaluations are too few for REINFORCE alone; some choices
are drawn beside those of the best episode, whatever the policy says. The defaults were chosen on
planted problems of 5 and 20 matrices (without imitation 1.4 to 1.6 times the remaining loss), the
draws on two trained nets, where those from all places alike found less
(`benchmarks/rank_search_cpu_2026-11.md`).

Legend: M matrices, P places of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from omnisparse.errors import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    Share,
    check_ranges,
)
from omnisparse.search.ranks import NUM_SHARES, SMALLEST_SHARE, RankSpace

Evaluate = Callable[[Sequence[int]], float]
"""The reward of places; larger is better."""

_FORBIDDEN = -1e9


class Episode(NamedTuple):
    """One walk through the matrices."""

    places: tuple[int, ...]
    reward: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerConfig:
    """How the policy learns."""

    hidden_dim: PositiveInt = 64
    """Cells of the policy."""
    learning_rate: PositiveFloat = 0.2
    """Of Adam."""
    updates: PositiveInt = 1
    """Steps of the optimizer on every batch."""
    entropy_weight: NonNegativeFloat = 1.0
    """Weight of the policy's entropy, which keeps it exploring."""
    baseline_decay: Annotated[float, Range(minimum=0, below=1)] = 0.9
    """Decay of the running mean of the rewards."""
    batch: PositiveInt = 1
    """Episodes between two updates."""
    queue: PositiveInt = 4
    """Best episodes that are imitated."""
    imitation_weight: NonNegativeFloat = 1.0
    """Weight of that."""
    exploration: Share = 0.3
    """Share of the choices that are the place of the best episode so far or one beside it, drawn
    alike, whatever the policy says: a policy that imitates its best episodes would soon repeat
    them, and places far from theirs mostly waste an evaluation."""
    start_sharpness: NonNegativeFloat = 0.5
    """How closely the untrained policy follows the allocation it starts from, in nats per place."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_ranges(self)


class Policy(nn.Module):
    """An LSTM that sees where it is, what it chose last and what is left, and scores the places.

    Args:
        space: What there is to choose.
        hidden_dim: Cells.
        start: Places that the untrained policy prefers.
        sharpness: How much, in nats per place of distance.
    """

    def __init__(
        self, space: RankSpace, *, hidden_dim: int, start: Sequence[int], sharpness: float
    ) -> None:
        super().__init__()
        self.space, self.sharpness = space, sharpness
        self.num_places = max(len(options) for options in space.choices)
        self.cell = nn.LSTMCell(hidden_dim, hidden_dim)
        self.previous = nn.Embedding(self.num_places + 1, hidden_dim)
        self.position = nn.Embedding(len(space.names), hidden_dim)
        self.left = nn.Linear(1, hidden_dim)
        self.output = nn.Linear(hidden_dim, self.num_places)
        nn.init.zeros_(self.output.weight)
        self.start = nn.Parameter(torch.zeros(len(space.names), self.num_places))
        self.prefer(start)

    def prefer(self, places: Sequence[int]) -> None:
        """Prefer other places than those it began with; what it learned of order is kept."""
        distance = torch.arange(self.num_places)[None] - torch.tensor(list(places))[:, None]
        with torch.no_grad():
            self.start.copy_(-self.sharpness * distance.abs())

    def walk(
        self, rows: int, choose: Callable[[int, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decide every matrix in order, for several walks at once.

        Args:
            rows: Walks R.
            choose: Given the step and ``[R, P]`` log-probabilities, the ``[R]`` places to take.

        Returns:
            ``[R, M]`` places, ``[R]`` log-probabilities of the walks, ``[R]`` mean entropies of
            their steps.
        """
        space = self.space
        hidden = self.left.weight.new_zeros(rows, self.cell.hidden_size)
        state = (hidden, hidden)
        before = torch.full((rows,), self.num_places)
        spent = torch.zeros(rows, dtype=torch.int64)
        room = max(1, space.total - space.budget.fixed)
        steps, log_probabilities, entropies = [], [], []
        for step in range(len(space.names)):
            left = (1 - spent / room).to(hidden.dtype)[:, None]
            where = self.position(torch.tensor([step]))
            state = self.cell(self.previous(before) + where + self.left(left), state)
            blocked = torch.ones(rows, self.num_places, dtype=torch.bool)
            for row, paid in enumerate(spent.tolist()):
                legal = space.legal(step, paid)
                blocked[row, : len(legal)] = ~torch.tensor(legal)
            logits = (self.output(state[0]) + self.start[step]).masked_fill(blocked, _FORBIDDEN)
            log_probs = torch.log_softmax(logits, dim=-1)
            before = choose(step, log_probs)
            steps.append(before)
            log_probabilities.append(log_probs.gather(1, before[:, None])[:, 0])
            entropies.append(-(log_probs.exp() * log_probs).sum(dim=-1))
            spent = spent + torch.tensor(space.costs[step])[before]
        return (
            torch.stack(steps, dim=1),
            torch.stack(log_probabilities).sum(dim=0),
            torch.stack(entropies).mean(dim=0),
        )

    def score(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """``[R]`` log-probabilities and mean entropies of ``[R, M]`` walks that were."""
        _, log_probability, entropy = self.walk(len(places), lambda step, _: places[:, step])
        return log_probability, entropy

    def move_to(self, space: RankSpace, tested: Sequence[int] | None = None) -> list[int]:
        """Go on with another budget of the same grid: every preference falls as the budget does.

        Without this the matrices decided first would take what they had before, and the wall
        would leave nothing for the last.

        Args:
            space: Of the new budget.
            tested: Places that a sensitivity test of the net at hand suggests; they replace the
                preferences that the policy began with.

        Returns:
            The places to begin with: those tested, or the most probable walk.

        Raises:
            ValueError: If the grid is another.
        """
        before = self.space
        if [len(options) for options in before.choices] != [len(o) for o in space.choices]:
            raise ValueError("the policy is of another grid of ranks")
        rooms = [one.total - one.budget.fixed for one in (before, space)]
        moved = round(
            math.log(rooms[0] / rooms[1]) / math.log(1 / SMALLEST_SHARE) * (NUM_SHARES - 1)
        )
        places = torch.arange(self.num_places)
        wanted = places + moved
        inside = wanted.clamp(0, self.num_places - 1)
        beyond = (wanted - inside).abs().float()
        with torch.no_grad():
            self.start.copy_(self.start[:, inside] - self.sharpness * beyond)
        self.space = space  # its wall is that of this budget
        if tested is not None:
            self.prefer(tested)
            return list(tested)
        return self.best()

    def best(self) -> list[int]:
        """The most probable walk."""
        with torch.no_grad():
            return self.walk(1, lambda step, log_probs: log_probs.argmax(dim=-1))[0][0].tolist()


def reinforce(
    space: RankSpace,
    evaluate: Evaluate,
    *,
    episodes: int,
    start: Sequence[int],
    config: ControllerConfig | None = None,
    seed: int = 0,
    policy: Policy | None = None,
    on_episode: Callable[[Episode], None] = lambda episode: None,
) -> tuple[list[Episode], Policy]:
    """Train a policy; a function of its seed and of what ``evaluate`` says.

    Args:
        space: What there is to choose.
        evaluate: The reward of places.
        episodes: Walks to evaluate.
        start: Places that the untrained policy prefers; evaluated first.
        config: How it learns.
        seed: Of the policy's weights and its draws.
        policy: One to go on with, as of an earlier round with the same grid and another budget
            (:meth:`Policy.move_to`); None for a fresh one.
        on_episode: Told of every episode.

    Returns:
        The episodes in order, and the policy.

    Source: Williams 1992 (REINFORCE with a baseline).
    """
    config = config or ControllerConfig()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if policy is None:
            policy = Policy(
                space, hidden_dim=config.hidden_dim, start=start, sharpness=config.start_sharpness
            )
    policy.move_to(space)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    found: list[Episode] = []
    baseline: float | None = None
    spread = 0.0

    def draw(step: int, log_probs: Tensor) -> Tensor:
        legal = log_probs > _FORBIDDEN / 2
        best = max(found, key=lambda episode: episode.reward).places[step]
        beside = legal & ((torch.arange(policy.num_places) - best).abs() <= 1)
        beside = torch.where(beside.any(dim=1, keepdim=True), beside, legal)
        free = torch.rand(len(log_probs), 1, generator=generator) < config.exploration
        chances = torch.where(free, beside.float(), log_probs.exp())
        return torch.multinomial(chances, 1, generator=generator)[:, 0]

    def record(places: Sequence[int]) -> Episode:
        episode = Episode(tuple(places), evaluate(places))
        found.append(episode)
        on_episode(episode)
        return episode

    record(space.walled(start))
    while len(found) < episodes:
        with torch.no_grad():
            places = policy.walk(min(config.batch, episodes - len(found)), draw)[0]
        rewards = torch.tensor([record(row).reward for row in places.tolist()], dtype=torch.float64)
        mean = float(rewards.mean())
        baseline = found[0].reward if baseline is None else baseline
        size = float((rewards - baseline).abs().mean())
        spread = size if spread == 0 else _running(spread, size, config.baseline_decay)
        advantages = ((rewards - baseline) / max(spread, 1e-12)).float().clamp(-3, 3)
        elite = torch.tensor([list(one.places) for one in _distinct_best(found, config.queue)])
        for _ in range(config.updates):
            log_probability, entropy = policy.score(places)
            loss = -(advantages * log_probability + config.entropy_weight * entropy).mean()
            loss = loss - config.imitation_weight * policy.score(elite)[0].mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss / len(space.names))
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        baseline = _running(baseline, mean, config.baseline_decay)
    return found, policy


def _running(value: float, new: float, decay: float) -> float:
    return decay * value + (1 - decay) * new


def _distinct_best(found: Sequence[Episode], count: int) -> list[Episode]:
    """The best different episodes, best first; of equal ones the earliest."""
    distinct: dict[tuple[int, ...], Episode] = {}
    for episode in found:
        distinct.setdefault(episode.places, episode)
    return sorted(distinct.values(), key=lambda episode: -episode.reward)[:count]
