"""Batched greedy and beam search of the transducer, frame by frame.

Legend: B batch, T' encoder frames, K beam, V vocabulary, J joiner, L longest hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from omnisparse.errors import OmnisparseError
from omnisparse.models.base import BLANK, NO_FINITE_SCORE, SOS_EOS, Hypothesis
from omnisparse.models.cell_norm import CellNormPredictor
from omnisparse.models.joiner import Joiner
from omnisparse.models.predictor import LstmPredictor, PredictorState, StatelessPredictor

_HASH_FACTOR = 6364136223846793005
"""Odd multiplier (Knuth) of the rolling hash by which equal hypotheses are found."""


class TransducerHead(Protocol):
    """The parts of a transducer that the searches use, in evaluation mode: all but the encoder."""

    predictor: LstmPredictor | StatelessPredictor | CellNormPredictor
    joiner: Joiner
    max_symbols_per_frame: int


class GreedyState(NamedTuple):
    """State of the greedy search of a stream between two chunks."""

    predicted: Tensor
    """``[B, J]``: projected output of the predictor."""

    predictor: PredictorState
    """State of the predictor."""


def predict(
    model: TransducerHead, tokens: Tensor, state: PredictorState
) -> tuple[Tensor, PredictorState]:
    """``[N, J]`` projected predictor outputs after ``[N]`` tokens, and the next state."""
    outputs, state = model.predictor.step(tokens, state)
    return model.joiner.predictor_projection(outputs), state


def transducer_greedy_search(
    model: TransducerHead,
    encoded: Tensor,
    lengths: Tensor,
    state: GreedyState | None = None,
    *,
    max_symbols: int | None = None,
) -> tuple[list[list[int]], GreedyState]:
    """Frame-synchronous greedy decoding of a whole batch.

    Args:
        model: In evaluation mode.
        encoded: ``[B, T', D]``.
        lengths: ``[B]`` int64.
        state: State after the chunk before, None at the start.
        max_symbols: Tokens one frame may emit; None for the model's own number.

    Returns:
        Token ids of this chunk per utterance, and the state for the next chunk.

    Raises:
        OmnisparseError: If the score of a chosen token is NaN.
    """
    batch = encoded.size(0)
    max_symbols = model.max_symbols_per_frame if max_symbols is None else max_symbols
    if state is None:
        start = lengths.new_full((batch,), BLANK)
        state = GreedyState(*predict(model, start, model.predictor.initial_state(batch)))
    predicted, memory = state
    frames = model.joiner.encoder_projection(encoded)
    emissions: list[Tensor] = []
    decisive = frames.new_zeros(batch)  # sum of the chosen scores: NaN if any is NaN
    for time in range(encoded.size(1)):
        frame = frames[:, time]
        active = time < lengths
        for _ in range(max_symbols):
            logits = model.joiner.score(frame + predicted)
            logits[:, SOS_EOS] = float("-inf")
            highest, tokens = logits.max(dim=-1)
            decisive = decisive + highest.masked_fill(~active, 0.0)
            active = active & (tokens != BLANK)
            if not active.any():
                break
            emissions.append(tokens.masked_fill(~active, BLANK))
            after, memory_after = predict(model, tokens, memory)
            predicted = torch.where(active[:, None], after, predicted)
            memory = tuple(
                torch.where(active[:, None], new, old)
                for new, old in zip(memory_after, memory, strict=True)
            )
    if decisive.isnan().any():
        raise OmnisparseError(NO_FINITE_SCORE)
    found: list[list[int]] = [[] for _ in range(batch)]
    if emissions:
        for tokens_out, row in zip(found, torch.stack(emissions, dim=1).tolist(), strict=True):
            tokens_out.extend(token for token in row if token != BLANK)
    return found, GreedyState(predicted, memory)


class BeamState(NamedTuple):
    """K hypotheses of each of B utterances; all tensors start with ``[B, K]``."""

    scores: Tensor
    """Natural log-probabilities; minus infinity marks an empty slot."""

    hashes: Tensor
    """int64, equal for equal token sequences."""

    history: Tensor
    """``[B, K, L]`` int64 tokens, filled up with blanks."""

    counts: Tensor
    """int64 number of tokens."""

    predicted: Tensor
    """``[B, K, J]``."""

    memory: tuple[Tensor, ...]
    """Predictor state."""

    def select(self, index: Tensor) -> BeamState:
        """The ``[B, N]`` hypotheses in the given slots of each utterance."""
        rows = torch.arange(index.size(0), device=index.device)[:, None]
        return self.combine(self, lambda tensor, _: tensor[rows, index])

    def combine(self, other: BeamState, function: Callable[[Tensor, Tensor], Tensor]) -> BeamState:
        """Apply a function to each pair of tensors, histories widened to the same length."""
        width = max(self.history.size(2), other.history.size(2))
        return BeamState(
            scores=function(self.scores, other.scores),
            hashes=function(self.hashes, other.hashes),
            history=function(_widen(self.history, width), _widen(other.history, width)),
            counts=function(self.counts, other.counts),
            predicted=function(self.predicted, other.predicted),
            memory=tuple(map(function, self.memory, other.memory)),
        )


def transducer_beam_search(
    model: TransducerHead,
    encoded: Tensor,
    lengths: Tensor,
    *,
    beam: int,
    max_symbols: int | None = None,
) -> list[list[Hypothesis]]:
    """Time-synchronous beam search of a whole batch; see :func:`advance_beam`.

    Args:
        model: In evaluation mode.
        encoded: ``[B, T', D]``.
        lengths: ``[B]`` int64.
        beam: Hypotheses per utterance, >= 1.
        max_symbols: Tokens one frame may emit; None for the model's own number.

    Returns:
        Per utterance up to ``beam`` hypotheses, the most probable first.
    """
    start = start_beam(model, lengths.size(0), beam)
    best = advance_beam(model, encoded, lengths, start, max_symbols=max_symbols)
    return [ranked_hypotheses(best, utterance) for utterance in range(encoded.size(0))]


def advance_beam(
    model: TransducerHead,
    encoded: Tensor,
    lengths: Tensor,
    state: BeamState,
    *,
    max_symbols: int | None = None,
) -> BeamState:
    """Search the next frames of a batch.

    At each frame every hypothesis may emit up to ``max_symbols`` tokens and then blank;
    hypotheses with equal tokens are merged, their probabilities added.

    Args:
        model: In evaluation mode.
        encoded: ``[B, T', D]``, T' possibly 0.
        lengths: ``[B]`` int64.
        state: From :func:`start_beam` or the frames before.
        max_symbols: Tokens one frame may emit; None for the model's own number.

    Returns:
        The hypotheses after these frames.

    Raises:
        OmnisparseError: If the net's scores are NaN, so that no hypothesis is left.

    Source: Saon et al. 2020, "Alignment-length synchronous decoding for RNN transducer",
    ICASSP (its time-synchronous reference). Deviation: a running hypothesis is dropped when it can
    no longer be among the ``beam`` best of the frame; it could only add a merged alignment.
    """
    max_symbols = model.max_symbols_per_frame if max_symbols is None else max_symbols
    frames = model.joiner.encoder_projection(encoded)
    best, beam = state, state.scores.size(1)
    for time in range(encoded.size(1)):
        frame = frames[:, time, None]
        running = best
        ended: BeamState | None = None
        for symbol in range(max_symbols + 1):
            logits = model.joiner.score(frame + running.predicted)
            log_probs = torch.log_softmax(logits.float(), dim=-1)
            closed = running._replace(scores=running.scores + log_probs[..., BLANK])
            ended = closed if ended is None else _merge(ended, closed)
            if symbol == max_symbols:
                break
            parents, tokens, scores = _expand(running.scores, log_probs, beam)
            hopeless = scores <= ended.scores.min(dim=1, keepdim=True).values
            if hopeless.all():
                break
            scores = scores.masked_fill(hopeless, float("-inf"))
            running = _extend(model, running.select(parents), tokens, scores)
        assert ended is not None
        best = _where(time < lengths, ended, best)
    if not (best.scores > float("-inf")).any(dim=1).all():
        raise OmnisparseError(NO_FINITE_SCORE)
    return best


def settle_beam(state: BeamState) -> tuple[list[int], BeamState]:
    """Take out the common prefix of all hypotheses of one stream; it can no longer change.

    Args:
        state: Of one utterance.

    Returns:
        The settled tokens, and the state without them, with which the search continues.
    """
    living = state.scores[0] > float("-inf")
    counts = state.counts[0, living]
    histories = state.history[0, living, : int(counts.min())]
    num_settled = int((histories == histories[:1]).all(dim=0).long().cumprod(dim=0).sum())
    rest = state._replace(
        history=state.history[:, :, num_settled : int(counts.max())].clone(),
        counts=(state.counts - num_settled).clamp(min=0),
    )
    return histories[0, :num_settled].tolist(), rest


def start_beam(model: TransducerHead, batch: int, beam: int) -> BeamState:
    """One empty hypothesis per utterance, and ``beam - 1`` empty slots."""
    device = model.joiner.output.weight.device
    start = torch.full((batch * beam,), BLANK, dtype=torch.int64, device=device)
    predicted, memory = predict(model, start, model.predictor.initial_state(batch * beam))
    scores = torch.full((batch, beam), float("-inf"), device=device)
    scores[:, 0] = 0.0
    zeros = start.new_zeros(batch, beam)
    return BeamState(
        scores=scores,
        hashes=zeros,
        history=start.new_empty(batch, beam, 0),
        counts=zeros,
        predicted=predicted.view(batch, beam, -1),
        memory=tuple(tensor.view(batch, beam, -1) for tensor in memory),
    )


def _expand(scores: Tensor, log_probs: Tensor, beam: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``beam`` best continuations by a token: ``[B, K]`` parents, tokens and scores."""
    totals = scores[..., None] + log_probs
    totals[..., [BLANK, SOS_EOS]] = float("-inf")
    best, index = totals.flatten(1).topk(beam, dim=-1)
    return index // totals.size(-1), index % totals.size(-1), best


def _extend(model: TransducerHead, parents: BeamState, tokens: Tensor, scores: Tensor) -> BeamState:
    """Append ``[B, K]`` tokens to the parent hypotheses."""
    batch, beam = tokens.shape
    predicted, memory = predict(
        model, tokens.flatten(), tuple(tensor.flatten(0, 1) for tensor in parents.memory)
    )
    history = _widen(parents.history, int(parents.counts.max()) + 1)
    history = history.scatter(2, parents.counts[..., None], tokens[..., None])
    return BeamState(
        scores=scores,
        hashes=parents.hashes * _HASH_FACTOR + tokens + 1,
        history=history,
        counts=parents.counts + 1,
        predicted=predicted.view(batch, beam, -1),
        memory=tuple(tensor.view(batch, beam, -1) for tensor in memory),
    )


def _merge(first: BeamState, second: BeamState) -> BeamState:
    """Add up hypotheses with equal tokens, and keep the K most probable of both."""
    beams = first.combine(second, lambda left, right: torch.cat([left, right], dim=1))
    equal = beams.hashes[:, :, None] == beams.hashes[:, None, :]
    masses = beams.scores[:, None, :].masked_fill(~equal, float("-inf"))
    scores = torch.logsumexp(masses, dim=-1)
    repeated = equal.tril(diagonal=-1).any(dim=-1)
    scores = scores.masked_fill(repeated, float("-inf"))
    kept, index = scores.topk(first.scores.size(1), dim=-1)
    return beams.select(index)._replace(scores=kept)


def _where(condition: Tensor, new: BeamState, old: BeamState) -> BeamState:
    """Per utterance the new hypotheses where ``[B]`` condition holds, else the old."""

    def choose(left: Tensor, right: Tensor) -> Tensor:
        return torch.where(condition.view(-1, *[1] * (left.dim() - 1)), left, right)

    return new.combine(old, choose)


def _widen(history: Tensor, width: int) -> Tensor:
    """``[B, K, L]`` tokens filled up with blanks to ``width``, where shorter."""
    missing = width - history.size(2)
    return torch.nn.functional.pad(history, (0, missing), value=BLANK) if missing > 0 else history


def ranked_hypotheses(beams: BeamState, utterance: int = 0) -> list[Hypothesis]:
    """The hypotheses of one utterance, best first, without empty slots."""
    order = beams.scores[utterance].argsort(descending=True).tolist()
    return [
        Hypothesis(
            tokens=beams.history[utterance, place, : int(beams.counts[utterance, place])].tolist(),
            log_probability=float(beams.scores[utterance, place]),
        )
        for place in order
        if beams.scores[utterance, place] > float("-inf")
    ]
