"""Batched greedy and beam search of the LAS decoder.

Legend: B batch, T' encoder frames, K beam, V vocabulary, L longest hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from omnisparse.errors import OmnisparseError
from omnisparse.models.base import BLANK, NO_FINITE_SCORE, SOS_EOS, Hypothesis

LENGTH_MARGIN = 8
"""A hypothesis may have this many more tokens than there are encoder frames."""

HOPELESS_NATS = 12.0
"""A hypothesis is dropped when its log-probability is this far below the best ended one."""


State = TypeVar("State", bound="SpellerState")


class SpellerState(Protocol):
    """State of a decoder, one row per hypothesis."""

    def select(self: State, rows: Tensor) -> State:
        """The states of the given ``[N]`` int64 rows."""


NextLogProbs = Callable[[Tensor, State], tuple[Tensor, State]]
"""``[N]`` previous tokens and N states to ``[N, V]`` float32 log-probabilities and next states."""


def las_greedy_search(
    next_log_probs: NextLogProbs[State], state: State, lengths: Tensor
) -> list[list[int]]:
    """The most probable token at every step, for a whole batch.

    Args:
        next_log_probs: Scores the next token; the net is in evaluation mode.
        state: State of B rows, before the first token.
        lengths: ``[B]`` int64 numbers of encoder frames.

    Returns:
        Token ids per utterance; an utterance that never ends is cut at its frames plus
        ``LENGTH_MARGIN``.

    Raises:
        OmnisparseError: If the score of a chosen token is NaN.
    """
    batch = lengths.size(0)
    limits = lengths + LENGTH_MARGIN
    previous = lengths.new_full((batch,), SOS_EOS)
    active = torch.ones_like(previous, dtype=torch.bool)
    steps: list[Tensor] = []
    decisive = torch.zeros(
        batch, device=lengths.device
    )  # sum of the chosen scores: NaN if any of them is NaN
    for step in range(int(limits.max())):
        log_probs, state = next_log_probs(previous, state)
        log_probs[:, BLANK] = float("-inf")
        highest, previous = log_probs.max(dim=-1)
        decisive = decisive + highest.masked_fill(~active, 0.0)
        active = active & (previous != SOS_EOS) & (step < limits)
        if not active.any():
            break
        steps.append(previous.masked_fill(~active, SOS_EOS))
    if decisive.isnan().any():
        raise OmnisparseError(NO_FINITE_SCORE)
    if not steps:
        return [[] for _ in range(batch)]
    return [_until_end(row) for row in torch.stack(steps, dim=1).tolist()]


def las_beam_search(
    next_log_probs: NextLogProbs[State],
    state: State,
    lengths: Tensor,
    *,
    beam: int,
    length_exponent: float = 0.6,
) -> list[list[Hypothesis]]:
    """Beam search over a batch; hypotheses are ranked by length-normalised log-probability.

    An utterance is finished when it has ``beam`` ended hypotheses, when every running one is
    hopeless (``HOPELESS_NATS``), or at the step limit of :func:`las_greedy_search`, where
    running hypotheses count as ended if there is no other.

    Args:
        next_log_probs: Scores the next token; the net is in evaluation mode.
        state: State of B * beam rows, before the first token; rows of one utterance are adjacent.
        lengths: ``[B]`` int64 numbers of encoder frames.
        beam: Hypotheses per utterance, >= 1.
        length_exponent: Exponent of the length penalty, 0 for none.

    Returns:
        Per utterance up to ``beam`` hypotheses, best first.

    Raises:
        OmnisparseError: If the net's scores are NaN, so that no hypothesis is left.

    Source: Wu et al. 2016, arXiv:1609.08144, eq. 14 (length penalty; no coverage term).
    """
    batch, device = lengths.size(0), lengths.device
    limits = (lengths + LENGTH_MARGIN).tolist()
    first_rows = torch.arange(batch, device=device)[:, None] * beam
    scores = torch.full((batch, beam), float("-inf"), device=device)
    scores[:, 0] = 0.0  # all hypotheses of an utterance start equal, so only the first is used
    previous = lengths.new_full((batch, beam), SOS_EOS)
    history = lengths.new_empty((batch, beam, 0))
    ended = [_EndedHypotheses(beam, length_exponent) for _ in range(batch)]
    for step in range(max(limits)):
        log_probs, state = next_log_probs(previous.flatten(), state)
        log_probs[:, BLANK] = float("-inf")
        totals = scores[:, :, None] + log_probs.view(batch, beam, -1)
        num_candidates = min(2 * beam, totals.flatten(1).size(1))
        best, index = totals.flatten(1).topk(num_candidates, dim=-1)
        vocab_size = totals.size(-1)
        parents, tokens = index // vocab_size, index % vocab_size
        _collect_ended(ended, best, parents, tokens, history, beam)
        # Of a parent's candidates at most one ends, so `beam` running hypotheses remain.
        running = best.masked_fill(tokens == SOS_EOS, float("-inf"))
        scores, chosen = running.topk(beam, dim=-1)
        parents, previous = parents.gather(1, chosen), tokens.gather(1, chosen)
        rows = (first_rows + parents).flatten()
        state = state.select(rows)
        history = torch.cat([history.flatten(0, 1)[rows], previous.view(-1, 1)], dim=1)
        history = history.view(batch, beam, -1)
        best_running = scores[:, 0].tolist()
        for utterance, pool in enumerate(ended):
            if pool.closed:
                continue
            if step + 1 >= limits[utterance]:
                pool.close(history[utterance], scores[utterance])
            else:
                pool.closed = pool.is_complete(best_running[utterance])
        if all(pool.closed for pool in ended):
            break
    ranked = [pool.ranked() for pool in ended]
    if not all(ranked):
        raise OmnisparseError(NO_FINITE_SCORE)
    return ranked


class _EndedHypotheses:
    """The best ended hypotheses of one utterance."""

    def __init__(self, beam: int, length_exponent: float) -> None:
        self.beam = beam
        self.length_exponent = length_exponent
        self.closed = False
        self._found: list[tuple[float, Hypothesis]] = []

    def add(self, tokens: list[int], log_probability: float) -> None:
        """Add a hypothesis, and drop the worst if there are more than ``beam``."""
        value = self._normalised(log_probability, len(tokens) + 1)
        self._found.append((value, Hypothesis(tokens, log_probability)))
        self._found.sort(key=lambda pair: -pair[0])
        del self._found[self.beam :]

    def is_complete(self, best_running: float) -> bool:
        """Whether no running hypothesis can still matter, given the best running score."""
        if best_running == float("-inf") or len(self._found) >= self.beam:
            return True
        best = max((found.log_probability for _, found in self._found), default=float("-inf"))
        return best_running < best - HOPELESS_NATS

    def close(self, history: Tensor, scores: Tensor) -> None:
        """End the search at the step limit; running hypotheses count only if nothing ended."""
        self.closed = True
        if not self._found:
            for tokens, score in zip(history.tolist(), scores.tolist(), strict=True):
                if score > float("-inf"):
                    self.add(tokens, score)

    def ranked(self) -> list[Hypothesis]:
        """The hypotheses, best first."""
        return [hypothesis for _, hypothesis in self._found]

    def _normalised(self, log_probability: float, length: int) -> float:
        penalty: float = ((5.0 + length) / 6.0) ** self.length_exponent
        return log_probability / penalty


def _collect_ended(
    ended: list[_EndedHypotheses],
    best: Tensor,
    parents: Tensor,
    tokens: Tensor,
    history: Tensor,
    beam: int,
) -> None:
    """Move candidates that end and are among the best ``beam`` to the pools."""
    ends = (tokens[:, :beam] == SOS_EOS) & (best[:, :beam] > float("-inf"))
    for utterance, rank in ends.nonzero().tolist():
        if not ended[utterance].closed:
            parent = int(parents[utterance, rank])
            ended[utterance].add(history[utterance, parent].tolist(), float(best[utterance, rank]))


def _until_end(tokens: list[int]) -> list[int]:
    """The tokens before the first end mark."""
    return tokens[: tokens.index(SOS_EOS)] if SOS_EOS in tokens else tokens
